#pragma once

#include <memory>
#include <vector>

#include "headkit/gates/gate_policy.h"
#include "headkit/gates/run_policy.h"

namespace headkit {

/// A policy with one knob, lambda in [0, 1]: how careful it is. 1 runs, for every input, all that
/// the policy may run; smaller values never run more. Each policy says which of its thresholds
/// lambda sets; calibration and the budget controller turn nothing else.
class AdjustablePolicy : public GatePolicy {
 public:
  /// The same policy with its knob at `lambda`. Throws std::invalid_argument outside [0, 1].
  virtual std::shared_ptr<GatePolicy> at(double lambda) const = 0;
  /// `batch` run at each of these lambdas, in their order, without records. Runs the whole model
  /// once for each; a policy that knows what its runs share does with fewer, with the same results.
  virtual std::vector<PolicyRun> sweep(GatedModel& model, const Batch& batch,
                                       const std::vector<double>& lambdas) const;
};

/// Throws std::invalid_argument unless `lambda` is in [0, 1].
void check_lambda(const char* operation, double lambda);

}  // namespace headkit
