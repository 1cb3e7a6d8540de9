#pragma once

#include <string>

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Settings of `AblationScorer`.
struct AblationOptions {
  /// What stands in for the head: zero, which equals pruning; mean, its mean output over the valid
  /// tokens of the data; resample, its mean output over the tokens of another example, drawn with
  /// ScoreOptions::seed. ScoreOptions::dropped_output goes with zero only.
  std::string replacement = "zero";
};

/// Leave-one-out: mean loss with the head's gate at 0 minus mean loss of the dense model. Layer l
/// is restarted from its cached input and closed heads are skipped, several heads in one forward;
/// the cost is about half of (heads + 1) forwards. Negative = the loss is lower without the head.
/// Where the batches hold labels, `settings` tells how many predictions each head flips.
/// Ignores interactions between heads: a yardstick, not an oracle.
/// Source: Michel, Levy, Neubig 2019.
class AblationScorer final : public HeadScorer {
 public:
  explicit AblationScorer(AblationOptions options = {}) : options_(std::move(options)) {}
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;

 private:
  AblationOptions options_;
};

}  // namespace headkit
