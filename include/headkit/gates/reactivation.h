#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "headkit/gates/adjustable_policy.h"
#include "headkit/gates/ladder.h"
#include "headkit/gates/ladder_trace.h"
#include "headkit/gates/linear_probe.h"
#include "headkit/gates/run_policy.h"
#include "headkit/models/objective.h"

namespace headkit {

/// Everything that a `Reactivation` is made of.
struct ReactivationSettings {
  Ladder ladder;
  /// Reads the state before its layer j, 1 <= j < L; there it is decided how the sample goes on.
  std::shared_ptr<const LinearProbe> probe;
  /// The confidence, in [0, 1]: "probe_confidence", or "predicted_loss" (exp of its negative).
  std::string signal = "probe_confidence";
  /// In [0, 1]: a sample goes on above rung r if its confidence is below lambda^powers[r].
  double lambda = 0.5;
  std::vector<double> powers = {};  ///< at least 1, ascending, for each rung but the top; or empty
  std::optional<double> risk = {};  ///< promised mean loss, where calibrated so
  std::string calibration = {};     ///< free text: what set lambda
};

/// Reactivation midway: layers below j run the lowest rung; from the state before layer j a linear
/// probe decides which rung the other layers run. Nothing is run twice.
///
/// What the first layers dropped is not recovered, so the top rung from j on is not the whole top
/// rung. Lambda = 1 is: it runs the top rung in all layers, without a decision.
/// Cost: one product of the pooled state with the probe. Decided in double over the sample's own
/// tokens: the same for any batch, order, padding or number of threads, as far as the states are.
class Reactivation final : public AdjustablePolicy {
 public:
  /// Throws std::invalid_argument on settings that do not fit together.
  explicit Reactivation(ReactivationSettings settings);
  std::string name() const override { return "reactivation"; }
  /// {0, j}; at lambda = 1 {0}.
  std::vector<int64_t> decision_layers() const override;
  /// Throws std::invalid_argument where rungs with different compensations meet in a batch:
  /// `decide_parts` serves these.
  GateSet decide(const GateInput& input, State& state) const override;
  /// One part for each rung that the batch needs. Records are written with the last decision.
  std::vector<Part> decide_parts(const GateInput& input, State& state) const override;
  /// Throws std::invalid_argument, before anything runs, if the ladder does not fit the model.
  PolicyRun run(GatedModel& model, const Batch& batch,
                const RunOptions& options = {}) const override;
  std::shared_ptr<GatePolicy> at(double lambda) const override;
  /// One run of the first layers, and one of the others for each rung.
  std::vector<PolicyRun> sweep(GatedModel& model, const Batch& batch,
                               const std::vector<double>& lambdas) const override;
  std::string to_json() const override;
  static std::shared_ptr<Reactivation> from_json(const std::string& text);

  const ReactivationSettings& settings() const { return settings_; }
  /// What a sample runs that goes on with rung r: the lowest rung below layer j, rung r above. A
  /// rung of its own, so that its gates replay a decision. `size()` = the top rung in all layers.
  const Rung& path(int64_t rung) const;
  /// The rung that each sample goes on with, int64 [B], from hidden [B, T, D] before layer j.
  at::Tensor rungs_of(const at::Tensor& hidden, const at::Tensor& attention_mask) const;

 private:
  struct Choice {
    at::Tensor path;        // int64 [B]
    at::Tensor confidence;  // double [B]; undefined where nothing was looked at
  };
  Choice choose(const GateInput& input) const;
  void record(const GateInput& input, const Choice& choice, State& state) const;

  ReactivationSettings settings_;
  std::vector<double> thresholds_;
  std::vector<Rung> paths_;
};

/// What all rungs, reactivated, say of calibration examples. Confidence is the same for all rungs.
LadderTrace trace_reactivation(GatedModel& model, const DataSource& data,
                               const ReactivationSettings& settings, const Progress& progress = {});

/// Settings of `fit_reactivation`.
struct ReactivationFit {
  int64_t layer = 1;  ///< j
  std::string signal = "probe_confidence";
  LadderBudget budget = {};  ///< required: what `calibration` may cost on average
  /// Loss on the lowest rung that "predicted_loss" predicts; null = KL to the dense model.
  const Objective* objective = nullptr;
  LinearProbeFit probe = {};
  Progress progress = {};  ///< batches done, over both data sources
};

/// What `fit_reactivation` returns.
struct FittedReactivation {
  std::shared_ptr<Reactivation> policy;
  FittedProbe probe;
  LadderTrace trace;                                            ///< of `calibration`
  double mean_heads = 0, flops_share = 0, changed = 0, kl = 0;  ///< on `calibration`
};

/// Fits the probe on `train`, on the states that the lowest rung gives, and lambda on `calibration`
/// (other examples) to a budget. With three rungs or more the powers are those of a geometric row
/// 1, q, q^2 .. with the least KL to the top rung. The probe learns what the dense model says, not
/// the labels.
FittedReactivation fit_reactivation(GatedModel& model, const DataSource& train,
                                    const DataSource& calibration, const Ladder& ladder,
                                    const ReactivationFit& options);

}  // namespace headkit
