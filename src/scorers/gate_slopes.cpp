#include "scorers/gate_slopes.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "headkit/core/error.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

at::Tensor finite_on_cpu(const char* metric, const at::Tensor& gradient) {
  HEADKIT_CHECK_RUNTIME(gradient.defined(), metric, "a gradient for the gates", "none");
  const at::Tensor values = gradient.detach().to(at::kCPU, at::kDouble);
  HEADKIT_CHECK_RUNTIME(values.isfinite().all().item<bool>(), metric, "finite gate gradients",
                        "NaN or infinity; score in float32 or scale the inputs");
  return values;
}

}  // namespace

ModelState embed_without_graph(GatedModel& model, const Batch& batch) {
  const c10::NoGradGuard no_grad;
  return model.embed(batch);
}

void check_slope_exists(const char* metric, const Objective& objective) {
  HEADKIT_CHECK(!objective.stationary_at_dense(), metric,
                "an objective with a slope at the dense model (cross_entropy, margin)",
                objective.name(),
                ", which has its minimum there: every first-order score is exactly 0. Use metric "
                "ablation, kl_curvature, or a task loss");
}

GateSlopes gate_slopes(const char* metric, GatedModel& model, const ModelState& state,
                       const Objective& objective, const GateSlopeOptions& options) {
  const HeadLayout layout = model.layout();
  const int64_t examples = state.hidden.size(0);
  std::vector<int64_t> shape{examples, layout.layers, layout.heads};
  if (options.by_token) shape.insert(shape.begin() + 2, state.hidden.size(1));
  const auto dtype = state.hidden.options().dtype(
      state.hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);

  const c10::AutoGradMode grad_on(true);
  GateSet gates;
  gates.heads = at::ones(shape, dtype).set_requires_grad(true);
  torch::autograd::variable_list inputs{gates.heads};
  if (options.dropped_output.defined()) {
    gates.dropped_output = options.dropped_output.to(state.hidden.options());
  }
  if (options.neurons.defined()) {
    gates.neurons = at::ones({examples, options.neurons.size(0), options.neurons.size(1)}, dtype)
                        .set_requires_grad(true);
    inputs.push_back(gates.neurons);
  }

  const at::Tensor output = model.head(model.run(state, 0, layout.layers, gates));
  const at::Tensor dense = objective.needs_dense() ? output.detach() : at::Tensor();
  const at::Tensor losses = objective.loss(output, state.batch, dense);
  checked_losses(metric, losses, examples);
  HEADKIT_CHECK_RUNTIME(losses.requires_grad(), metric, "a loss that depends on the gates",
                        "one without a gradient: does the model run under no_grad or detach?");
  const auto gradients = torch::autograd::grad({losses.sum()}, inputs, {}, /*retain_graph=*/false,
                                               /*create_graph=*/false, /*allow_unused=*/true);
  GateSlopes slopes;
  slopes.heads = finite_on_cpu(metric, gradients[0]);
  if (options.neurons.defined()) {
    slopes.neurons =
        finite_on_cpu(metric, gradients[1]) * options.neurons.to(at::kCPU, at::kDouble);
  }
  return slopes;
}

}  // namespace headkit
