#pragma once

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Shapley values of a game: `values` double, [2^N] or [2^N, games], at place m the worth of the
/// set of the players whose bits are set in m. Returns [N] or [N, games]. O(N 2^N). Throws
/// std::invalid_argument unless the size is a power of two, N <= 20.
at::Tensor shapley_values(const at::Tensor& values);

/// Settings of `ShapleyScorer`.
struct ShapleyOptions {
  int64_t permutations =
      100;               ///< the most that are drawn, in pairs of a permutation and its reverse
  double tolerance = 0;  ///< a permutation ends where |v(S) - v(none)| <= this; 0 = never
  int64_t rank = 0;      ///< stop once the intervals separate the best `rank`; 0 = never
  bool exact = true;     ///< all subsets where that costs no more than the permutations
};

/// Shapley values of the game v(S) = minus the mean loss with exactly the heads of S open. Heads
/// are closed one at a time in random order; a head's marginal is v before minus v after. Signed:
/// negative = the head does harm. Without truncation they sum to v(all) - v(none).
///
/// Up to 20 heads can be computed exactly; the interval is then over examples, else over pairs of
/// permutations (normal). `settings` holds "exact", "permutations", "truncated" (share of marginals
/// set to 0, which biases), "v_all", "v_none" and "separated". Source: Held, Yang 2023; truncation
/// after Ghorbani, Zou 2019.
class ShapleyScorer final : public HeadScorer {
 public:
  explicit ShapleyScorer(ShapleyOptions options = {}) : options_(options) {}
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;

 private:
  ShapleyOptions options_;
};

}  // namespace headkit
