#pragma once

#include <optional>

#include "headkit/core/head_mask.h"
#include "headkit/gates/adjustable_policy.h"
#include "headkit/gates/conformal.h"
#include "headkit/gates/run_policy.h"

namespace headkit {

struct EscalationSettings {
  HeadMask low;   ///< heads of the first run
  HeadMask high;  ///< heads of the second; contains `low`
  /// In [0, 1]: samples whose confidence is below it run again on `high`; 1 = all of them.
  double threshold = 0.5;
  at::Tensor dropped_output;   ///< [L, H, D] or undefined, in both runs
  std::optional<double> risk;  ///< promised share of changed labels, where calibrated so
  std::string calibration;     ///< free text: what set the threshold
};

/// Confidence escalation between two nested head sets: everything runs on `low`; samples whose
/// output logits are close together run again, as a sub-batch, on `high`. Layers below the first
/// one in which the sets differ are not repeated.
///
/// Confidence = tanh(margin / 2) in double, margin = best minus second logit (absolute value of a
/// single logit): for two classes the difference of their probabilities.
/// A re-run repeats the feed-forward blocks too: over a whole model escalation pays only where few
/// samples escalate.
class Escalation final : public AdjustablePolicy {
 public:
  /// Throws std::invalid_argument unless `high` contains `low` and the threshold is in [0, 1].
  explicit Escalation(EscalationSettings settings);
  std::string name() const override { return "escalation"; }
  /// Always throws: escalation looks at outputs, so it drives the model itself (`run_policy`).
  GateSet decide(const GateInput& input, State& state) const override;
  PolicyRun run(GatedModel& model, const Batch& batch, const RunOptions& options = {}) const;
  /// Lambda is the threshold: 0 repeats nothing, 1 everything. What was promised of the old
  /// threshold is not promised of the new one.
  std::shared_ptr<GatePolicy> at(double lambda) const override;
  /// Two runs, whatever the number of lambdas.
  std::vector<PolicyRun> sweep(GatedModel& model, const Batch& batch,
                               const std::vector<double>& lambdas) const override;
  std::string to_json() const override;
  static std::shared_ptr<Escalation> from_json(const std::string& text);

  const EscalationSettings& settings() const { return settings_; }
  int64_t shared_layers() const;  ///< layers that a re-run does not repeat

 private:
  EscalationSettings settings_;
};

/// tanh(margin / 2) of logits [B, C], double [B], CPU.
at::Tensor output_confidence(const at::Tensor& logits);

/// What both head sets say of a calibration set; enough to set any threshold without running again.
struct EscalationTrace {
  at::Tensor confidence;    ///< double [N], of the low run
  at::Tensor changed;       ///< double [N]: 1 where the low label differs from the high one
  int64_t low_heads = 0;    ///< heads of a first run
  int64_t extra_heads = 0;  ///< heads that a re-run adds
};
EscalationTrace trace_escalation(GatedModel& model, const DataSource& data,
                                 const EscalationSettings& settings, const Progress& progress = {});

/// The threshold at which the traced samples run `mean_heads` heads on average, re-runs included:
/// the closest reachable mean that does not exceed it. Throws if it lies outside [low, low +
/// extra].
double escalation_threshold(const EscalationTrace& trace, double mean_heads);

/// The threshold by conformal risk control on changed labels, over the fixed grid 0, 1/steps .. 1.
/// The promise is about agreement with `high`, which is the dense model if it holds all heads.
ConformalResult escalation_threshold_at_risk(const EscalationTrace& trace, double risk,
                                             int64_t steps = 64);

}  // namespace headkit
