#include "gates/units_there.h"

#include <ATen/ATen.h>

#include "headkit/core/error.h"
#include "headkit/core/gate_set.h"

namespace headkit {

UnitsThere::UnitsThere(GatedModel& model) : layout_(model.layout()), heads_(model.heads()) {
  const bool known = model.gated_units().neurons;
  at::Tensor there = known ? model.neurons().to(at::kCPU, at::kLong)
                           : at::ones({layout_.layers, layout_.feed_forward}, at::kLong);
  original_neurons_ = there.numel();
  const int64_t last = there.size(1) % kNeuronBlock;
  if (last > 0) there = at::constant_pad_nd(there, {0, kNeuronBlock - last});
  neurons_ = there.unflatten(1, {there.size(1) / kNeuronBlock, kNeuronBlock}).sum(2);
}

UnitCounts UnitsThere::count(const at::Tensor& heads, const at::Tensor& blocks, int64_t first,
                             int64_t last) const {
  const at::Tensor active = heads.logical_and(heads_.keep()).slice(0, first, last);
  at::Tensor neurons = neurons_;
  if (blocks.defined()) neurons = neurons * blocks.to(at::kLong);
  // Where layers have two attention blocks, or none has neurons, their feed-forward blocks count
  // in proportion.
  const int64_t layers = neurons.size(0), all = std::max<int64_t>(layout_.layers, 1);
  const at::Tensor run = neurons.slice(0, first * layers / all, last * layers / all);
  return {static_cast<double>(active.sum().item<int64_t>()),
          static_cast<double>(active_kv_heads(layout_, active).item<int64_t>()),
          static_cast<double>(run.sum().item<int64_t>())};
}

UnitsThere::Counts UnitsThere::count_samples(const at::Tensor& heads,
                                             const at::Tensor& blocks) const {
  const at::Tensor active = heads.logical_and(heads_.keep());
  const int64_t samples = heads.size(0);
  return {active.sum({1, 2}, false, at::kLong), active_kv_heads(layout_, active),
          blocks.defined() ? (neurons_ * blocks.to(at::kLong)).sum({1, 2})
                           : neurons_.sum().expand({samples}).clone()};
}

void check_rung(const char* operation, GatedModel& model, const Rung& rung) {
  rung.check(operation);
  const HeadLayout layout = model.layout();
  HEADKIT_CHECK(
      rung.heads.layers() == layout.layers && rung.heads.heads() == layout.heads, operation,
      c10::str("a model of ", rung.heads.layers(), " layers of ", rung.heads.heads(), " heads"),
      layout.layers, " layers of ", layout.heads);
  if (!rung.blocks.defined()) return;
  const UnitsThere there(model);
  HEADKIT_CHECK(rung.blocks.sizes() == there.neurons().sizes(), operation,
                c10::str("a model with blocks of neurons of shape ", rung.blocks.sizes()), "shape ",
                there.neurons().sizes());
}

}  // namespace headkit
