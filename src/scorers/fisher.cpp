#include "headkit/scorers/fisher.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>

#include "core/json.h"
#include "distributed/measured_walk.h"
#include "headkit/core/error.h"
#include "scorers/gate_slopes.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "fisher";

// Calls `measure` with the slopes of every batch that holds examples; a row an example, or the mean
// over the batch. Returns the number of examples.
int64_t for_each_slopes(GatedModel& model, const DataSource& data, const Objective& objective,
                        const GateSlopeOptions& options, bool per_batch, const Progress& progress,
                        const std::function<Measured(const GateSlopes&)>& measure,
                        const std::function<void(const Batch&, const Measured&)>& take) {
  const auto mode = model.evaluating();
  const int64_t examples = for_each_measured(
      kName, data, progress,
      [&](const Batch& batch, int64_t) {
        const ModelState state = embed_without_graph(model, batch);
        GateSlopes slopes = gate_slopes(kName, model, state, objective, options);
        if (per_batch) {
          slopes.heads = slopes.heads.mean(0, /*keepdim=*/true);
          if (slopes.neurons.defined()) slopes.neurons = slopes.neurons.mean(0, /*keepdim=*/true);
        }
        return measure(slopes);
      },
      take);
  HEADKIT_CHECK(examples > 0, kName, "data with at least one example", "none");
  return examples;
}

// Sum so far; undefined = nothing yet.
void add_to(at::Tensor& sum, const at::Tensor& more) {
  if (more.defined()) sum = sum.defined() ? sum + more : more;
}

}  // namespace

FisherInformation fisher_information(GatedModel& model, const DataSource& data,
                                     const Objective& objective, const FisherOptions& options) {
  check_slope_exists(kName, objective);
  const at::Tensor present = scored_heads(model);
  const bool neurons = options.neurons && model.gated_units().neurons;
  const GateSlopeOptions slope_options{.neurons = neurons ? model.neurons() : at::Tensor(),
                                       .dropped_output = options.dropped_output};
  FisherInformation sums;
  int64_t rows = 0;
  std::vector<at::Tensor> head_rows, neuron_rows;
  // Gradients of heads, sums over them, squares of those of neurons and, if they are kept, these.
  const auto measure = [&](const GateSlopes& slopes) -> Measured {
    const at::Tensor g = slopes.heads * present;
    Measured found{g, at::einsum("blh,blk->lhk", {g, g}), at::Tensor(), at::Tensor()};
    if (slopes.neurons.defined()) {
      found[2] = slopes.neurons.square().sum(0);
      if (options.keep_gradients) found[3] = slopes.neurons.to(at::kFloat);
    }
    return found;
  };
  const auto take = [&](const Batch&, const Measured& measured) {
    add_to(sums.head_blocks, measured[1]);
    add_to(sums.neurons, measured[2]);
    if (options.keep_gradients) head_rows.push_back(measured[0]);
    if (measured[3].defined()) neuron_rows.push_back(measured[3]);
    rows += measured[0].size(0);
  };
  sums.samples = for_each_slopes(model, data, objective, slope_options, options.per_batch,
                                 options.progress, measure, take);
  const auto count = static_cast<double>(rows);
  sums.head_blocks /= count;
  sums.heads = sums.head_blocks.diagonal(0, 1, 2).clone();
  if (sums.neurons.defined()) sums.neurons /= count;
  if (!head_rows.empty()) sums.head_gradients = at::cat(head_rows);
  if (!neuron_rows.empty()) sums.neuron_gradients = at::cat(neuron_rows);
  if (sums.heads.eq(0).all().item<bool>() &&
      (!sums.neurons.defined() || sums.neurons.eq(0).all().item<bool>())) {
    fail_all_zero(kName, objective);
  }
  return sums;
}

HeadScores FisherScorer::score(GatedModel& model, const DataSource& data,
                               const Objective& objective, const ScoreOptions& options) const {
  check_score_options(options);
  check_slope_exists(kName, objective);
  const bool per_batch = options.granularity == "batch";
  HEADKIT_CHECK(per_batch || options.granularity == "example", kName,
                "granularity example or batch", "'", options.granularity, "'");
  const at::Tensor present = scored_heads(model);
  const GateSlopeOptions slope_options{
      .by_token = false, .neurons = {}, .dropped_output = options.dropped_output};
  ScoreSample sample;
  HeadScores scores;
  scores.metric = kName;
  scores.objective = objective.name();
  int64_t largest = 0;
  scores.samples = for_each_slopes(
      model, data, objective, slope_options, per_batch, options.progress,
      [&](const GateSlopes& slopes) -> Measured { return {(slopes.heads * present).square()}; },
      [&](const Batch& batch, const Measured& measured) {
        sample.add(measured[0], at::ones({measured[0].size(0)}, at::kDouble));
        largest = std::max(largest, batch_size(batch));
      });
  if (sample.all_zero()) fail_all_zero(kName, objective);
  sample.summarise(options, scores);
  Json settings = {{"granularity", options.granularity},
                   {"normalization", options.normalization},
                   {"bootstrap", options.bootstrap},
                   {"compensated", options.dropped_output.defined()}};
  if (per_batch) settings["batch_size"] = largest;
  scores.settings = settings.dump();
  return scores;
}

}  // namespace headkit
