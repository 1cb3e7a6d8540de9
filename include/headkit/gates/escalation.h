#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "headkit/core/head_mask.h"
#include "headkit/gates/adjustable_policy.h"
#include "headkit/gates/ladder.h"
#include "headkit/gates/ladder_trace.h"
#include "headkit/gates/linear_probe.h"
#include "headkit/gates/run_policy.h"

namespace headkit {

/// Everything that an `Escalation` is made of.
struct EscalationSettings {
  Ladder ladder;
  /// In [0, 1]: a sample climbs while its confidence on a rung is below it; 1 = all to the top.
  double threshold = 0.5;
  /// What the confidence is. "output_margin": tanh(margin / 2) of the output logits, margin = best
  /// minus second (absolute value of a single logit); for two classes the difference of their
  /// probabilities. "probe_confidence", "predicted_loss" (exp of its negative): of `probe`, on the
  /// state that the rung's run has before the probe's layer.
  std::string signal = "output_margin";
  std::shared_ptr<const LinearProbe> probe = {};
  std::optional<double> risk = {};  ///< promised mean loss, where calibrated so
  std::string calibration = {};     ///< free text: what set the threshold
};

/// Escalation up a ladder: everything runs on the lowest rung; samples whose confidence is low run
/// again, as a sub-batch, on the next one, and so on. Layers that compute the same on both rungs
/// are not repeated.
///
/// A re-run repeats the feed-forward blocks too: over a whole model escalation pays where the lower
/// rungs are cheap in all parts, or few samples climb.
class Escalation final : public AdjustablePolicy {
 public:
  /// Throws std::invalid_argument unless there is a ladder, the threshold is in [0, 1] and the
  /// probe gives the signal.
  explicit Escalation(EscalationSettings settings);
  std::string name() const override { return "escalation"; }
  /// Always throws: escalation looks at outputs, so it drives the model itself (`run_policy`).
  GateSet decide(const GateInput& input, State& state) const override;
  PolicyRun run(GatedModel& model, const Batch& batch,
                const RunOptions& options = {}) const override;
  /// Lambda is the threshold: 0 repeats nothing, 1 everything. What was promised of the old
  /// threshold is not promised of the new one.
  std::shared_ptr<GatePolicy> at(double lambda) const override;
  /// One run a rung, whatever the number of lambdas.
  std::vector<PolicyRun> sweep(GatedModel& model, const Batch& batch,
                               const std::vector<double>& lambdas) const override;
  std::string to_json() const override;
  /// Version 2; reads also version 1, of two head masks with one compensation.
  static std::shared_ptr<Escalation> from_json(const std::string& text);

  const EscalationSettings& settings() const { return settings_; }

 private:
  EscalationSettings settings_;
};

/// Rungs of head masks, lowest first, that share their compensation, [L, H, D] or undefined.
Ladder ladder_of_masks(const std::vector<HeadMask>& masks, const at::Tensor& dropped_output = {});

/// tanh(margin / 2) of logits [B, C], double [B], CPU.
at::Tensor output_confidence(const at::Tensor& logits);

/// What all rungs say of calibration examples. Cost: one run a rung over `data`.
LadderTrace trace_escalation(GatedModel& model, const DataSource& data,
                             const EscalationSettings& settings, const Progress& progress = {});

}  // namespace headkit
