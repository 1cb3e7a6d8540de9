#pragma once

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Settings of `HiesScorer`.
struct HiesOptions {
  double alpha = 0.5;  ///< weight of the gate gradient, 0 to 1; to be tuned on held-out data
};

/// alpha * scaled(gate gradient) + (1 - alpha) * (1 - scaled(attention entropy)), each scaled to
/// 0 .. 1 over all heads; gate gradient by example, entropy as AttentionEntropyScorer.
/// Source: HIES 2025 (arXiv 2510.13832).
class HiesScorer final : public HeadScorer {
 public:
  explicit HiesScorer(HiesOptions options = {}) : options_(options) {}
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;

 private:
  HiesOptions options_;
};

}  // namespace headkit
