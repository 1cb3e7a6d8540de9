#include "headkit/scorers/fisher.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/gate_slopes.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "fisher";

// Calls `visit` with the slopes of every batch that holds examples; a row an example, or the mean
// over the batch.
void for_each_slopes(GatedModel& model, const DataSource& data, const Objective& objective,
                     const GateSlopeOptions& options, bool per_batch, const Progress& progress,
                     const std::function<void(const GateSlopes&, int64_t examples)>& visit) {
  const auto mode = model.evaluating();
  int64_t batches = 0;
  bool any = false;
  data.for_each([&](const Batch& batch) {
    if (const int64_t examples = batch_size(batch); examples > 0) {
      const ModelState state = embed_without_graph(model, batch);
      GateSlopes slopes = gate_slopes(kName, model, state, objective, options);
      if (per_batch) {
        slopes.heads = slopes.heads.mean(0, /*keepdim=*/true);
        if (slopes.neurons.defined()) slopes.neurons = slopes.neurons.mean(0, /*keepdim=*/true);
      }
      visit(slopes, examples);
      any = true;
    }
    if (progress) progress(++batches, data.size().value_or(-1));
  });
  HEADKIT_CHECK(any, kName, "data with at least one example", "none");
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
  for_each_slopes(model, data, objective, slope_options, options.per_batch, options.progress,
                  [&](const GateSlopes& slopes, int64_t examples) {
                    const at::Tensor g = slopes.heads * present;
                    const at::Tensor blocks = at::einsum("blh,blk->lhk", {g, g});
                    sums.head_blocks =
                        sums.head_blocks.defined() ? sums.head_blocks + blocks : blocks;
                    if (options.keep_gradients) head_rows.push_back(g);
                    if (slopes.neurons.defined()) {
                      const at::Tensor squares = slopes.neurons.square().sum(0);
                      sums.neurons = sums.neurons.defined() ? sums.neurons + squares : squares;
                      if (options.keep_gradients)
                        neuron_rows.push_back(slopes.neurons.to(at::kFloat));
                    }
                    rows += g.size(0);
                    sums.samples += examples;
                  });
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
  for_each_slopes(model, data, objective, slope_options, per_batch, options.progress,
                  [&](const GateSlopes& slopes, int64_t examples) {
                    const at::Tensor squares = (slopes.heads * present).square();
                    sample.add(squares, at::ones({squares.size(0)}, at::kDouble));
                    scores.samples += examples;
                    largest = std::max(largest, examples);
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
