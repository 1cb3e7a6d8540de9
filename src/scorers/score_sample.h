#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "headkit/core/head_scores.h"
#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Throws std::invalid_argument on settings that no scorer knows, before any work.
void check_score_options(const ScoreOptions& options);

/// 1 for heads that are there and, where options.gates are given, open at these; else 0. Double [L,
/// H]. Throws std::invalid_argument for gates of another shape.
at::Tensor scored_heads(GatedModel& model, const ScoreOptions& options);

/// The contributions of independent units (examples, or batches) to a ratio of sums:
/// score = normalise(sum_i value_i / sum_i weight_i).
class ScoreSample {
 public:
  /// `values` [n, L, H], `weights` [n]; one row a unit.
  void add(const at::Tensor& values, const at::Tensor& weights);
  bool empty() const { return values_.empty(); }
  /// True if no unit contributed anything to any head.
  bool all_zero() const;

  /// Fills values and, by a seeded percentile bootstrap over units, lower and upper.
  void summarise(const ScoreOptions& options, HeadScores& scores) const;

 private:
  std::vector<at::Tensor> values_, weights_;
};

/// [.., L, H] divided by the Euclidean norm of each layer.
at::Tensor normalise_layers(const at::Tensor& values);

/// `losses` as double on CPU after checking shape [examples] and finiteness.
at::Tensor checked_losses(const char* metric, const at::Tensor& losses, int64_t examples);

/// Throws std::runtime_error: the gates do not reach the loss.
[[noreturn]] void fail_all_zero(const char* metric, const Objective& objective);

}  // namespace headkit
