#include "headkit/scorers/gate_gradient.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/json.h"
#include "distributed/measured_walk.h"
#include "headkit/core/error.h"
#include "scorers/gate_slopes.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "gate_gradient";

void check_options(const ScoreOptions& options, const Objective& objective) {
  check_score_options(options);
  const std::string& unit = options.granularity;
  HEADKIT_CHECK(unit == "token" || unit == "example" || unit == "batch" || unit == "signed", kName,
                "granularity token, example, batch or signed", "'", unit, "'");
  HEADKIT_CHECK(options.denominator == "examples" || options.denominator == "tokens", kName,
                "denominator examples or tokens", "'", options.denominator, "'");
  check_slope_exists(kName, objective);
}

}  // namespace

HeadScores GateGradientScorer::score(GatedModel& model, const DataSource& data,
                                     const Objective& objective,
                                     const ScoreOptions& options) const {
  check_options(options, objective);
  const auto mode = model.evaluating();
  const at::Tensor present = scored_heads(model);
  const bool by_token = options.granularity == "token";
  const bool by_batch = options.granularity == "batch";

  const GateSlopeOptions slope_options{
      .by_token = by_token, .neurons = {}, .dropped_output = options.dropped_output};
  ScoreSample sample;
  HeadScores scores;
  scores.metric = kName;
  scores.objective = objective.name();
  int64_t tokens = 0;
  int64_t largest = 0;
  const auto measure = [&](const Batch& batch, int64_t) -> Measured {
    const ModelState state = embed_without_graph(model, batch);
    at::Tensor values = gate_slopes(kName, model, state, objective, slope_options).heads;
    at::Tensor valid = at::ones({batch_size(batch), state.hidden.size(1)}, at::kDouble);
    if (state.attention_mask.defined()) {
      valid = state.attention_mask.to(at::kCPU, at::kDouble);
    }
    if (by_token) values = (values.abs() * valid.unsqueeze(1).unsqueeze(3)).sum(2);
    if (options.granularity == "example") values = values.abs();
    if (by_batch) values = values.sum(0, /*keepdim=*/true).abs();
    return {values * present, valid.sum(1)};
  };
  const auto take = [&](const Batch& batch, const Measured& measured) {
    const at::Tensor& length = measured[1];
    at::Tensor weights = options.denominator == "tokens" ? length : at::ones_like(length);
    if (by_batch) weights = weights.sum(0, /*keepdim=*/true);
    sample.add(measured[0], weights);
    tokens += length.sum().item<int64_t>();
    largest = std::max(largest, batch_size(batch));
  };
  scores.samples = for_each_measured(kName, data, options.progress, measure, take);
  HEADKIT_CHECK(!sample.empty(), kName, "data with at least one example", "none");
  if (sample.all_zero()) fail_all_zero(kName, objective);

  sample.summarise(options, scores);
  Json settings = {{"granularity", options.granularity},
                   {"normalization", options.normalization},
                   {"denominator", options.denominator},
                   {"bootstrap", options.bootstrap},
                   {"tokens", tokens},
                   {"compensated", options.dropped_output.defined()}};
  if (by_batch) settings["batch_size"] = largest;
  scores.settings = settings.dump();
  return scores;
}

}  // namespace headkit
