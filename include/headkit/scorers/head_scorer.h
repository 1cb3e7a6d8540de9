#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "headkit/core/head_scores.h"
#include "headkit/core/setting_info.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// Settings that all scorers share.
struct ScoreOptions {
  std::string granularity = "example";  ///< gate gradient: token, example, batch, signed
  /// none, layer_l2 (divide by the norm of the layer), minmax (to 0 .. 1 over all heads). It
  /// changes the order between layers.
  std::string normalization = "none";
  std::string denominator = "examples";  ///< gate gradient: examples, tokens (Michel's own)
  double confidence = 0.95;              ///< level of the bootstrap interval, in (0, 1)
  int64_t bootstrap = 1000;              ///< resamples over examples; 0 = no interval
  uint64_t seed = 0;                     ///< of the bootstrap and of the random scorer
  at::Tensor dropped_output = {};  ///< [L, H, D]: what replaces a closed head; empty = nothing
  Progress progress = {};          ///< batches done
};

/// Scores every head from data. Settings only: one scorer serves many threads.
class HeadScorer {
 public:
  virtual ~HeadScorer() = default;
  /// Larger = more important. Heads that are physically gone score 0. Leaves the model and its
  /// gradients as they were, also where it throws. Dropout is off meanwhile.
  /// Sums are kept in double, so that batch size, order and padding do not show.
  /// Throws std::invalid_argument on unknown settings, an objective that does not fit the metric or
  /// data without examples; std::runtime_error if a loss or gradient is not finite, a gradient is
  /// missing, or every score is 0 (the gates then do not reach the loss).
  virtual HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                           const ScoreOptions& options) const = 0;
};

/// What the registry tells of a metric.
struct ScorerInfo {
  std::string name;
  std::string definition;
  std::string source;
  std::string cost;   ///< in forwards and backwards over the data
  std::string needs;  ///< labels, none ...
  /// From a JSON object of `settings`; std::invalid_argument for unknown ones.
  std::function<std::unique_ptr<HeadScorer>(const std::string& settings)> make;
  std::vector<SettingInfo> settings = {};  ///< its own, beside ScoreOptions
  /// What its scores take before heads of different layers are ranked together, as in ScoreOptions:
  /// the default of pruning, once, by this metric.
  std::string ranking_normalization = "none";
};
const std::vector<ScorerInfo>& scorers();
/// Throws std::invalid_argument, naming the known ones, for an unknown name.
const ScorerInfo& scorer_info(const std::string& name);
/// Throws std::invalid_argument, naming the known ones, for an unknown name or setting.
std::unique_ptr<HeadScorer> make_scorer(const std::string& name,
                                        const std::string& settings = "{}");

}  // namespace headkit
