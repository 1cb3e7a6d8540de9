#pragma once

#include <memory>

#include "headkit/gates/calibration.h"

namespace headkit {

/// A policy with its calibration: its knob takes grid values at or above the calibrated lambda
/// only, so whoever turns it keeps the promise.
class CalibratedPolicy final : public AdjustablePolicy {
 public:
  /// Starts at `lambda`, brought up to the grid and the floor; by default at the floor. Throws
  /// std::invalid_argument if the calibration is of another policy.
  CalibratedPolicy(std::shared_ptr<const AdjustablePolicy> policy, Calibration calibration,
                   double lambda = 0);
  std::string name() const override { return "calibrated"; }
  void check_model(GatedModel& model) const override;
  std::unique_ptr<State> start() const override { return current_->start(); }
  GateSet decide(const GateInput& input, State& state) const override;
  std::vector<Part> decide_parts(const GateInput& input, State& state) const override;
  std::vector<int64_t> decision_layers() const override { return current_->decision_layers(); }
  /// Never below the calibrated lambda, whatever is asked for.
  std::shared_ptr<GatePolicy> at(double lambda) const override;
  std::vector<PolicyRun> sweep(GatedModel& model, const Batch& batch,
                               const std::vector<double>& lambdas) const override;
  /// Records tell lambda, the calibration and its promise. This and `sweep` throw
  /// std::invalid_argument for a model other than the one that was calibrated (`check_model`).
  PolicyRun run(GatedModel& model, const Batch& batch,
                const RunOptions& options = {}) const override;
  std::string to_json() const override;
  static std::shared_ptr<CalibratedPolicy> from_json(const std::string& text);

  const AdjustablePolicy& policy() const { return *policy_; }
  const Calibration& calibration() const { return calibration_; }
  double lambda() const { return lambda_; }

 private:
  std::shared_ptr<const AdjustablePolicy> policy_;
  Calibration calibration_;
  double lambda_;
  std::shared_ptr<const GatePolicy> current_;  // policy_ at lambda_
};

}  // namespace headkit
