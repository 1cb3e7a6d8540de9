#include "models/prefix_runs.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

namespace headkit {
namespace {

// These bound the memory of one gated forward and of what it gives.
constexpr int64_t kTokensAtOnce = 16384;
constexpr int64_t kOutputsAtOnce = int64_t{1} << 26;

}  // namespace

PrefixRuns::PrefixRuns(GatedModel& model, const Batch& batch, GateSet gates, Taps* taps)
    : model_(model), gates_(std::move(gates)) {
  const c10::NoGradGuard no_grad;
  const int64_t layers = model.layout().layers;
  states_.push_back(model.embed(batch));
  for (int64_t layer = 0; layer < layers; ++layer) {
    states_.push_back(model.run(states_.back(), layer, layer + 1, gates_, taps));
  }
  output_ = model.head(states_.back());
}

at::TensorOptions PrefixRuns::gate_options() const {
  const at::Tensor& hidden = states_.front().hidden;
  return hidden.options().dtype(hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

int64_t PrefixRuns::copies_at_once() const {
  const at::Tensor& hidden = states_.front().hidden;
  const int64_t tokens = std::max<int64_t>(hidden.size(0) * hidden.size(1), 1);
  const int64_t outputs = std::max<int64_t>(output_.numel(), 1);
  return std::max<int64_t>(std::min(kTokensAtOnce / tokens, kOutputsAtOnce / outputs), 1);
}

at::Tensor PrefixRuns::rows(int64_t copies) const {
  return at::arange(examples()).repeat({copies});
}

GateSet PrefixRuns::gates(const at::Tensor& heads, const at::Tensor& dropped_output) const {
  GateSet changed = gates_.select_samples(rows(heads.size(0) / std::max<int64_t>(examples(), 1)));
  changed.heads = heads.to(gate_options());
  if (dropped_output.defined()) {
    changed.dropped_output = dropped_output.to(states_.front().hidden.options());
  }
  return changed;
}

at::Tensor PrefixRuns::rerun(int64_t layer, const GateSet& gates) const {
  const c10::NoGradGuard no_grad;
  const at::Tensor index = rows(gates.heads.size(0) / std::max<int64_t>(examples(), 1));
  return model_.head(
      model_.run(model_.select(before(layer), index), layer, model_.layout().layers, gates));
}

}  // namespace headkit
