#pragma once

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Settings of `KlCurvatureScorer`.
struct KlCurvatureOptions {
  /// Labels drawn from the model's own distribution for each example (of outputs [B, T, C] for each
  /// token that counts); 0 = sum over all classes, for outputs [B, C] only.
  int64_t draws = 0;
};

/// sum_c p_c (d log p_c / d gate)^2, mean over examples: the second derivative of KL(dense ||
/// gated) at the dense model, where the first one is 0. Needs no labels and no objective. Outputs
/// [B, T, C]: mean over the tokens that count. One forward, and a backward for each class or draw.
class KlCurvatureScorer final : public HeadScorer {
 public:
  explicit KlCurvatureScorer(KlCurvatureOptions options = {}) : options_(options) {}
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;

 private:
  KlCurvatureOptions options_;
};

}  // namespace headkit
