#include "gates/gate_gradients.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "gates/early_record.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

at::Tensor open_gates(at::IntArrayRef shape, const at::Tensor& hidden) {
  return at::ones(shape, gate_options(hidden)).set_requires_grad(true);
}

at::Tensor magnitude(const at::Tensor& gradient, const at::Tensor& gates) {
  if (!gradient.defined()) return at::zeros(gates.sizes(), at::kDouble);
  return gradient.abs().to(at::kCPU, at::kDouble);
}

}  // namespace

GateGradients gate_gradients(GatedModel& model, const ModelState& state, const Batch& batch,
                             const Objective& objective, const at::Tensor& dropped_output,
                             const at::Tensor& dropped_blocks, bool blocks,
                             const std::vector<int64_t>& stops,
                             const std::function<void(size_t, const ModelState&)>& visit) {
  const HeadLayout layout = model.layout();
  const int64_t samples = state.hidden.size(0);
  at::Tensor dense;
  if (objective.needs_dense()) {
    const at::NoGradGuard no_grad;
    dense = model.head(model.run(state, 0, layout.layers, {}));
  }
  const at::AutoGradMode with_grad(true);
  GateSet gates;
  gates.heads = open_gates({samples, layout.layers, layout.heads}, state.hidden);
  gates.dropped_output = fitting_dropped_output(dropped_output, state.hidden);
  std::vector<at::Tensor> inputs{gates.heads};
  if (blocks) {
    const at::Tensor neurons = model.neurons();
    const int64_t count = (neurons.size(1) + kNeuronBlock - 1) / kNeuronBlock;
    gates.blocks = open_gates({samples, neurons.size(0), count}, state.hidden);
    gates.dropped_blocks = fitting_dropped_output(dropped_blocks, state.hidden);
    inputs.push_back(gates.blocks);
  }
  ModelState at = state;
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i] > at.layer) at = model.run(at, at.layer, stops[i], gates);
    visit(i, at);
  }
  const at::Tensor output = model.head(model.run(at, at.layer, layout.layers, gates));
  const at::Tensor loss = objective.loss(output, batch, dense).sum();
  const auto gradients =
      torch::autograd::grad({loss}, inputs, {}, std::nullopt, false, /*allow_unused=*/true);
  GateGradients found{magnitude(gradients[0], gates.heads), {}};
  if (blocks) found.blocks = magnitude(gradients[1], gates.blocks);
  return found;
}

void check_has_gradient(const char* operation, const Objective& objective) {
  HEADKIT_CHECK(!objective.stationary_at_dense(), operation,
                "an objective with a gradient at the dense model, for example cross_entropy",
                objective.name(), ", whose first-order scores are all exactly zero there");
}

}  // namespace headkit
