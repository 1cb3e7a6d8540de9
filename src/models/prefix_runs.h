#pragma once

#include <vector>

#include "headkit/models/gated_model.h"

namespace headkit {

/// A batch that ran once under some gates, so that runs which differ from layer l on start there.
/// Without gradients.
class PrefixRuns {
 public:
  /// `gates` as GatedModel::run takes them; `taps` may be null.
  PrefixRuns(GatedModel& model, const Batch& batch, GateSet gates, Taps* taps = nullptr);

  int64_t examples() const { return states_.front().hidden.size(0); }
  const at::Tensor& output() const { return output_; }
  /// The state before `layer`, 0 .. L.
  const ModelState& before(int64_t layer) const { return states_[static_cast<size_t>(layer)]; }
  /// Dtype and device that gates of heads are given in.
  at::TensorOptions gate_options() const;
  /// Copies of the batch that one run may hold.
  int64_t copies_at_once() const;
  /// For each row of so many copies the place of its example, int64 [copies * examples].
  at::Tensor rows(int64_t copies) const;
  /// The gates of the run with other ones of heads, [copies * examples, L, H]; what closed heads
  /// add is that of the run unless `dropped_output` is given.
  GateSet gates(const at::Tensor& heads, const at::Tensor& dropped_output = {}) const;
  /// Outputs of copies of the batch, run from `layer` on.
  at::Tensor rerun(int64_t layer, const GateSet& gates) const;

 private:
  GatedModel& model_;
  GateSet gates_;
  std::vector<ModelState> states_;
  at::Tensor output_;
};

}  // namespace headkit
