#include "scorers/score_sample.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <random>

#include "headkit/core/error.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr double kTiny = 1e-20;

at::Tensor normalise(const ScoreOptions& options, const at::Tensor& values) {
  if (options.normalization == "layer_l2") return normalise_layers(values);
  return options.normalization == "minmax" ? scaled_to_range(values, at::ones_like(values))
                                           : values;
}

}  // namespace

at::Tensor scaled_to_range(const at::Tensor& values, const at::Tensor& counted) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const at::Tensor left_out = counted.eq(0);
  const std::vector<int64_t> heads{-2, -1};
  const at::Tensor least = values.masked_fill(left_out, kInfinity).amin(heads, /*keepdim=*/true);
  const at::Tensor most = values.masked_fill(left_out, -kInfinity).amax(heads, /*keepdim=*/true);
  const at::Tensor range = most - least;
  return (values - least) / at::where(range.gt(0), range, at::ones_like(range));
}

void check_score_options(const ScoreOptions& options) {
  const std::string& norm = options.normalization;
  HEADKIT_CHECK(norm == "none" || norm == "layer_l2" || norm == "minmax", "score",
                "normalization none, layer_l2 or minmax", "'", norm, "'");
  HEADKIT_CHECK(options.confidence > 0 && options.confidence < 1, "score",
                "a confidence level in (0, 1)", options.confidence);
  HEADKIT_CHECK(options.bootstrap >= 0, "score", "a number of resamples >= 0", options.bootstrap);
}

at::Tensor scored_heads(GatedModel& model) {
  return model.heads().keep().to(at::kCPU, at::kDouble);
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
  weights_.push_back(
      (weights.dim() == 1 ? weights.reshape({-1, 1, 1}) : weights).expand_as(values));
}

int64_t ScoreSample::units() const {
  int64_t units = 0;
  for (const at::Tensor& each : values_) units += each.size(0);
  return units;
}

bool ScoreSample::all_zero() const {
  return std::all_of(values_.begin(), values_.end(),
                     [](const at::Tensor& each) { return each.eq(0).all().item<bool>(); });
}

at::Tensor ScoreSample::mean() const { return means(at::ones({1, units()}, at::kDouble))[0]; }

at::Tensor ScoreSample::means(const at::Tensor& counts) const {
  const int64_t layers = values_.front().size(1), heads = values_.front().size(2);
  const auto summed = [&](const std::vector<at::Tensor>& parts) {
    at::Tensor sum = at::zeros({counts.size(0), layers * heads}, at::kDouble);
    int64_t first = 0;
    for (const at::Tensor& part : parts) {
      const int64_t rows = part.size(0);
      sum.addmm_(counts.slice(1, first, first + rows), part.reshape({rows, -1}));
      first += rows;
    }
    return sum.reshape({counts.size(0), layers, heads});
  };
  const at::Tensor weights = summed(weights_);
  return at::where(weights.gt(0), summed(values_) / weights, at::zeros_like(weights));
}

void ScoreSample::summarise(const ScoreOptions& options, HeadScores& scores) const {
  summarise_scores(
      options, mean(), units(), [this](const at::Tensor& counts) { return means(counts); }, scores);
}

void summarise_scores(const ScoreOptions& options, const at::Tensor& values, int64_t units,
                      const std::function<at::Tensor(const at::Tensor& counts)>& statistic,
                      HeadScores& scores) {
  scores.values = normalise(options, values);
  scores.confidence = options.confidence;
  scores.seed = options.seed;
  if (options.bootstrap == 0) return;
  std::mt19937_64 random(options.seed);
  std::vector<at::Tensor> draws;
  const int64_t rows_once = rows_at_once(units);
  for (int64_t done = 0; done < options.bootstrap; done += rows_once) {
    const int64_t rows = std::min(rows_once, options.bootstrap - done);
    draws.push_back(normalise(options, statistic(draw_counts(random, rows, units))));
  }
  const at::Tensor sorted = std::get<0>(at::cat(draws).sort(0));
  const double tail = (1 - options.confidence) / 2;
  scores.lower = percentile(sorted, tail).contiguous();
  scores.upper = percentile(sorted, 1 - tail).contiguous();
}

}  // namespace headkit
