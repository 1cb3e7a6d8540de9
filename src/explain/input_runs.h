#pragma once

#include <optional>
#include <vector>

#include "explain/ablation_outputs.h"
#include "headkit/explain/output_metric.h"
#include "headkit/models/gated_model.h"
#include "models/prefix_runs.h"

namespace headkit {

/// m of one input and how it moves with the gates of heads.
struct MetricSlopes {
  at::Tensor values;  ///< double [n]
  at::Tensor slopes;  ///< double [n, L, H]: dm / dgate
};

/// One input that ran once under its gates, and m of what runs with other gates of its heads. Keeps
/// references to what it is given.
class InputRuns {
 public:
  /// `example`: a batch of one. `gates`: of heads undefined, [L, H] or [1, L, H]. Throws
  /// std::invalid_argument for gates that do not fit, and for gates between 0 and 1 where a head
  /// that is closed adds something.
  InputRuns(const char* operation, GatedModel& model, const Batch& example, const GateSet& gates,
            const OutputMetric& metric, const MetricChoice& choice,
            const AblationOutputs& ablation);

  double value() const { return value_; }
  const MetricTarget& target() const { return target_; }
  /// Gates of the run, double [L, H]; 0 for heads that are gone.
  const at::Tensor& heads() const { return heads_; }
  /// Heads that are there, by layer, then head.
  const std::vector<HeadId>& present() const { return present_; }
  bool on(const HeadId& head) const;
  const PrefixRuns& runs() const { return *runs_; }
  const Taps& taps() const { return taps_; }
  const GateSet& gates() const { return gates_; }

  int64_t draws() const { return static_cast<int64_t>(stand_ins_.size()); }
  /// What closed heads add where a head that is on stands ablated, [L, H, D] or undefined.
  const at::Tensor& stand_in(int64_t draw) const { return stand_ins_[static_cast<size_t>(draw)]; }
  /// The mean of these over draws.
  const at::Tensor& mean_stand_in() const { return mean_stand_in_; }
  /// m under other gates, double [draws, n], of `heads` double [n, L, H]. Each run starts at the
  /// first layer in which it differs; those of one layer share forwards.
  at::Tensor values(const at::Tensor& heads) const;
  /// m of outputs of this input, [n], with its graph.
  at::Tensor differentiable(const at::Tensor& output) const;
  /// The same as numbers: double [n], CPU.
  at::Tensor measure(const at::Tensor& output) const;
  /// m and its slopes at gates [n, L, H], closed heads included; ablated ones add the mean
  /// stand-in. One forward and one backward each.
  MetricSlopes slopes(const at::Tensor& heads) const;

 private:
  at::Tensor values_of_draw(const at::Tensor& heads, const at::Tensor& first,
                            const at::Tensor& stand_in) const;
  at::Tensor stand_in_for(const at::Tensor& ablated) const;

  const char* operation_;
  GatedModel& model_;
  const OutputMetric& metric_;
  GateSet gates_;
  std::vector<HeadId> present_;
  at::Tensor heads_;
  Taps taps_;
  std::optional<PrefixRuns> runs_;
  MetricTarget target_;
  double value_ = 0;
  std::vector<at::Tensor> stand_ins_;
  at::Tensor mean_stand_in_;
};

}  // namespace headkit
