#pragma once

#include <string>

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Settings of `AttentionEntropyScorer`.
struct EntropyOptions {
  /// high: heads of high entropy are important; low: those of low entropy; calibrated: the sign of
  /// the rank correlation with ablation on the first `calibration_share` of the examples.
  std::string sign = "calibrated";
  /// Whether the first token of an example is a key: keep, drop, or calibrated (whichever
  /// correlates more). In decoders it often takes what attention is not needed elsewhere.
  std::string first_token = "keep";
  double calibration_share = 0.25;  ///< in (0, 1); these examples give no score
};

/// Mean over valid queries of the entropy of the attention, divided by the logarithm of the number
/// of keys that the query may see: 0 = one key, 1 = all keys alike. Queries that see a single key
/// are left out. Scores: the entropy, or 1 - entropy where low entropy is important.
///
/// `settings` holds "sign", and after a calibration "correlation" (Spearman), its interval over
/// examples and, where that includes 0, a "warning": the sign is a guess then. No probabilities lie
/// in memory on backend `cpu`. Reads Taps::attention_calls.
class AttentionEntropyScorer final : public HeadScorer {
 public:
  explicit AttentionEntropyScorer(EntropyOptions options = {}) : options_(std::move(options)) {}
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;

 private:
  EntropyOptions options_;
};

}  // namespace headkit
