#pragma once

#include <string>

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Settings of `ActivationScorer`.
struct ActivationOptions {
  /// Mean over valid tokens of, with a the output of the head before the output projection:
  /// energy |a W_O^T|^2, norm |a W_O^T|, raw_norm |a|. The last ranks differently: what the output
  /// projection does not read counts in it.
  std::string statistic = "energy";
};

/// How much a head writes. Looks at no label and no loss. One forward.
class ActivationScorer final : public HeadScorer {
 public:
  explicit ActivationScorer(ActivationOptions options = {}) : options_(std::move(options)) {}
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;

 private:
  ActivationOptions options_;
};

}  // namespace headkit
