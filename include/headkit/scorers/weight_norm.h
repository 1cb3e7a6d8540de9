#pragma once

#include <string>

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Settings of `WeightNormScorer`.
struct WeightNormOptions {
  /// Frobenius norms without biases: output |W_O^h|; ov |W_O^h W_V^h|; qk |W_Q^h^T W_K^h|; all:
  /// root of the sum of squares of the four slices.
  std::string kind = "output";
};

/// Norm of the weights of a head; looks at no data. Heads that share keys and values share their
/// part. A weak baseline: random removal can beat it (Ma, Fang, Wang 2023).
class WeightNormScorer final : public HeadScorer {
 public:
  explicit WeightNormScorer(WeightNormOptions options = {}) : options_(std::move(options)) {}
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;

 private:
  WeightNormOptions options_;
};

}  // namespace headkit
