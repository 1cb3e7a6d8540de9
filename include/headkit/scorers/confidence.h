#pragma once

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Settings of `ConfidenceScorer`.
struct ConfidenceOptions {
  /// The last token of an example, its end-of-sequence mark, counts neither as query nor as key.
  bool exclude_end = true;
};

/// Mean over valid queries of the largest attention probability; positional heads exceed 0.8. Heads
/// that matter without being confident (rare words) are missed. Looks at no label and no loss.
/// Reads Taps::attention_calls. Source: Voita et al. 2019.
class ConfidenceScorer final : public HeadScorer {
 public:
  explicit ConfidenceScorer(ConfidenceOptions options = {}) : options_(options) {}
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;

 private:
  ConfidenceOptions options_;
};

}  // namespace headkit
