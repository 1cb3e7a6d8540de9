#include "scorers/score_sample.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <random>

#include "headkit/core/error.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr double kTiny = 1e-20;

// [.., L, H] brought to 0 .. 1 over all heads; all 0 where all are equal.
at::Tensor normalise_range(const at::Tensor& values) {
  const at::Tensor least = values.amin({-2, -1}, /*keepdim=*/true);
  const at::Tensor range = values.amax({-2, -1}, /*keepdim=*/true) - least;
  return (values - least) / at::where(range.gt(0), range, at::ones_like(range));
}

at::Tensor normalise(const ScoreOptions& options, const at::Tensor& values) {
  if (options.normalization == "layer_l2") return normalise_layers(values);
  return options.normalization == "minmax" ? normalise_range(values) : values;
}

}  // namespace

void check_score_options(const ScoreOptions& options) {
  const std::string& norm = options.normalization;
  HEADKIT_CHECK(norm == "none" || norm == "layer_l2" || norm == "minmax", "score",
                "normalization none, layer_l2 or minmax", "'", norm, "'");
  HEADKIT_CHECK(options.confidence > 0 && options.confidence < 1, "score",
                "a confidence level in (0, 1)", options.confidence);
  HEADKIT_CHECK(options.bootstrap >= 0, "score", "a number of resamples >= 0", options.bootstrap);
}

at::Tensor scored_heads(GatedModel& model, const ScoreOptions& options) {
  const HeadLayout layout = model.layout();
  at::Tensor scored = model.heads().keep().to(at::kCPU, at::kDouble);
  if (!options.gates.defined()) return scored;
  const std::vector<int64_t> shape{layout.layers, layout.heads};
  HEADKIT_CHECK(options.gates.sizes() == at::IntArrayRef(shape) &&
                    options.gates.isfinite().all().item<bool>(),
                "score", c10::str("finite gates of shape ", at::IntArrayRef(shape)), "shape ",
                options.gates.sizes());
  return scored * options.gates.detach().to(at::kCPU).ne(0).to(at::kDouble);
}

at::Tensor normalise_layers(const at::Tensor& values) {
  return values / (values.square().sum(-1, /*keepdim=*/true).sqrt() + kTiny);
}

at::Tensor checked_losses(const char* metric, const at::Tensor& losses, int64_t examples) {
  HEADKIT_CHECK(losses.defined() && losses.dim() == 1 && losses.size(0) == examples, metric,
                "one loss per example, shape [" + std::to_string(examples) + "]", "shape ",
                losses.defined() ? losses.sizes() : at::IntArrayRef());
  const at::Tensor values = losses.detach().to(at::kCPU, at::kDouble);
  HEADKIT_CHECK_RUNTIME(
      values.isfinite().all().item<bool>(), metric, "finite losses", "NaN or infinity for example ",
      values.isfinite().logical_not().nonzero()[0].item<int64_t>(), " of a batch");
  return values;
}

void fail_all_zero(const char* metric, const Objective& objective) {
  throw std::runtime_error(
      error_message(metric, "at least one head whose gate moves the loss",
                    "every score exactly 0 for ", objective.name(),
                    ": the gates do not reach the loss, or every head is gone or writes nothing"));
}

void ScoreSample::add(const at::Tensor& values, const at::Tensor& weights) {
  values_.push_back(values);
  weights_.push_back(weights);
}

bool ScoreSample::all_zero() const {
  return std::all_of(values_.begin(), values_.end(),
                     [](const at::Tensor& each) { return each.eq(0).all().item<bool>(); });
}

void ScoreSample::summarise(const ScoreOptions& options, HeadScores& scores) const {
  const at::Tensor values = at::cat(values_);
  const at::Tensor weights = at::cat(weights_);
  const int64_t units = values.size(0);
  const std::vector<int64_t> shape{values.size(1), values.size(2)};
  scores.values = normalise(options, values.sum(0) / weights.sum());
  scores.confidence = options.confidence;
  scores.seed = options.seed;
  if (options.bootstrap == 0) return;

  const at::Tensor table = values.reshape({units, -1});
  std::mt19937_64 random(options.seed);
  std::vector<at::Tensor> draws;
  const int64_t rows_once = rows_at_once(units);
  for (int64_t done = 0; done < options.bootstrap; done += rows_once) {
    const int64_t rows = std::min(rows_once, options.bootstrap - done);
    const at::Tensor counts = draw_counts(random, rows, units);
    const at::Tensor mean = at::mm(counts, table) / at::mv(counts, weights).unsqueeze(1);
    draws.push_back(normalise(options, mean.reshape({rows, shape[0], shape[1]})));
  }
  const at::Tensor sorted = std::get<0>(at::cat(draws).sort(0));
  const double tail = (1 - options.confidence) / 2;
  scores.lower = percentile(sorted, tail).contiguous();
  scores.upper = percentile(sorted, 1 - tail).contiguous();
}

}  // namespace headkit
