#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "headkit/core/flops.h"
#include "headkit/gates/run_policy.h"
#include "headkit/pruners/hybrid_pruner.h"

namespace headkit {

/// Examples that nothing was fitted on, with what the model said of them before it changed.
class HeldOut {
 public:
  /// Runs the model over `data`. `latency` may be null; then arms have no milliseconds.
  HeldOut(GatedModel& model, const DataSource& data, const Objective& objective,
          std::shared_ptr<const LatencyModel> latency);

  const DataSource& data() const { return data_; }
  int64_t examples() const { return examples_; }
  /// Distance of outputs to those of the original: the objective's own, or KL.
  const Objective& distance() const { return *distance_; }

  /// How the model does under `run`, which is asked for each batch.
  HybridArm measure(const std::string& name,
                    const std::function<PolicyRun(const Batch& batch)>& run) const;
  HybridArm measure(const std::string& name, GatedModel& model, const GatePolicy& policy) const;

  /// Share of the original's FLOPs, for one example of mean length.
  double flops(const UnitCounts& counts) const;
  /// Of one example in a batch like the first; `layers`: run, re-runs included.
  double milliseconds(const UnitCounts& counts, double layers) const;
  /// In the unit of the budget.
  double cost(const HybridBudget& budget, const UnitCounts& counts, double layers) const;
  static double cost(const HybridBudget& budget, const HybridArm& arm);

 private:
  const DataSource& data_;
  std::shared_ptr<const LatencyModel> latency_;
  std::shared_ptr<Objective> distance_;
  HeadLayout layout_;
  UnitCounts all_;
  std::vector<at::Tensor> original_, tokens_;
  int64_t examples_ = 0, batch_ = 0, length_ = 0;
  double mean_tokens_ = 0;
};

}  // namespace headkit
