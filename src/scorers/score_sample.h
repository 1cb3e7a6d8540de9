#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "headkit/core/head_scores.h"
#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Throws std::invalid_argument on settings that no scorer knows, before any work.
void check_score_options(const ScoreOptions& options);

/// 1 for heads that are there, else 0; double, CPU, [L, H].
at::Tensor scored_heads(GatedModel& model);

/// The contributions of independent units (examples, or batches) to a ratio of sums:
/// sum_i value_i / sum_i weight_i, 0 where no unit has weight.
class ScoreSample {
 public:
  /// `values` [n, L, H]; `weights` [n], or broadcastable to `values`; one row a unit.
  void add(const at::Tensor& values, const at::Tensor& weights);
  bool empty() const { return values_.empty(); }
  int64_t units() const;
  /// True if no unit contributed anything to any head.
  bool all_zero() const;

  /// The ratio over all units, [L, H].
  at::Tensor mean() const;
  /// The ratio over resamples, in which unit i is drawn counts[.., i] times: [rows, n] -> [rows, L,
  /// H].
  at::Tensor means(const at::Tensor& counts) const;
  /// Fills values and, by a seeded percentile bootstrap over units, lower and upper.
  void summarise(const ScoreOptions& options, HeadScores& scores) const;

 private:
  std::vector<at::Tensor> values_, weights_;
};

/// Fills values, normalised, and lower and upper from resamples of the units: `statistic` makes
/// scores [rows, L, H] from counts [rows, units].
void summarise_scores(const ScoreOptions& options, const at::Tensor& values, int64_t units,
                      const std::function<at::Tensor(const at::Tensor& counts)>& statistic,
                      HeadScores& scores);

/// [.., L, H] brought to 0 .. 1 over the heads that `counted` [L, H] holds 1 for; all 0 where these
/// are equal.
at::Tensor scaled_to_range(const at::Tensor& values, const at::Tensor& counted);

/// [.., L, H] divided by the Euclidean norm of each layer.
at::Tensor normalise_layers(const at::Tensor& values);

/// `losses` as double on CPU after checking shape [examples] and finiteness.
at::Tensor checked_losses(const char* metric, const at::Tensor& losses, int64_t examples);

/// Throws std::runtime_error: the gates do not reach the loss.
[[noreturn]] void fail_all_zero(const char* metric, const Objective& objective);

}  // namespace headkit
