#include "explain/direct_effects.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>

#include "headkit/models/direct_paths.h"

namespace headkit {
namespace {

constexpr double kTolerance = 1e-3;  // of sums in float32, relative

// Biases that are part of what no block adds: those of norms and of the readout. Unset if one of
// them has no gradient.
std::optional<std::vector<at::Tensor>> outer_biases(GatedModel& model, bool feed_forward) {
  std::set<const void*> inner;
  const auto own = [&](const at::Tensor& tensor) {
    if (tensor.defined()) inner.insert(tensor.storage().unsafeGetStorageImpl());
  };
  const int64_t layers = model.layout().layers;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const AttentionWeights w = model.attention(layer);
    for (const at::Tensor& each : {w.q_bias, w.k_bias, w.v_bias, w.o_bias}) own(each);
  }
  const int64_t blocks = feed_forward ? model.neurons().size(0) : 0;
  for (int64_t layer = 0; layer < blocks; ++layer) {
    const FeedForwardWeights w = model.feed_forward(layer);
    for (const at::Tensor& each : {w.in_bias, w.out_bias, w.up_bias}) own(each);
  }
  std::vector<at::Tensor> biases;
  for (const auto& [name, tensor] : model.parameters()) {
    if (!std::string_view(name).ends_with("bias") ||
        inner.count(tensor.storage().unsafeGetStorageImpl()) > 0) {
      continue;
    }
    if (!tensor.requires_grad()) return std::nullopt;
    biases.push_back(tensor);
  }
  return biases;
}

double product(const at::Tensor& gradient, const at::Tensor& value) {
  if (!gradient.defined()) return 0;
  return (gradient.detach().to(at::kDouble) * value.detach().to(at::kDouble)).sum().item<double>();
}

at::Tensor open_blocks(const at::Tensor& given, int64_t count, const at::Tensor& like) {
  const at::Tensor gates = given.defined() ? given.detach().reshape({1, count}).to(like.options())
                                           : at::ones({1, count}, like.options());
  return gates.clone().set_requires_grad(true);
}

}  // namespace

std::optional<DirectEffects> direct_effects(GatedModel& model, const InputRuns& input) {
  auto* const paths = dynamic_cast<DirectPaths*>(&model);
  const auto direct = paths == nullptr ? nullptr : paths->direct_paths();
  if (direct == nullptr) return std::nullopt;
  const int64_t layers = model.layout().layers;
  const GatedUnits units = model.gated_units();
  const c10::AutoGradMode with_grad(true);
  ModelState start = input.runs().before(0);
  start.hidden = start.hidden.detach().clone().set_requires_grad(true);
  GateSet gates = input.runs().gates(input.heads().unsqueeze(0), input.mean_stand_in());
  gates.skip = false;
  gates.heads = gates.heads.detach().clone().set_requires_grad(true);
  std::vector<at::Tensor> sources{start.hidden};
  if (units.attention_sublayers) {
    gates.attention_sublayers = open_blocks(gates.attention_sublayers, layers, gates.heads);
    sources.push_back(gates.attention_sublayers);
  }
  if (units.feed_forward_sublayers) {
    gates.feed_forward_sublayers =
        open_blocks(gates.feed_forward_sublayers, model.neurons().size(0), gates.heads);
    sources.push_back(gates.feed_forward_sublayers);
  }
  const auto biases = outer_biases(model, units.feed_forward_sublayers);
  if (biases) sources.insert(sources.end(), biases->begin(), biases->end());

  const ModelState last = model.run(start, 0, layers, gates);
  const at::Tensor m = input.differentiable(model.head(last));
  torch::autograd::variable_list asked{gates.heads, last.hidden};
  asked.insert(asked.end(), sources.begin(), sources.end());
  const auto gradients = torch::autograd::grad({m.sum()}, asked, {}, /*retain_graph=*/false,
                                               /*create_graph=*/false, /*allow_unused=*/true);
  if (!gradients[0].defined() || !gradients[1].defined() || !gradients[2].defined()) {
    return std::nullopt;
  }
  DirectEffects found;
  const at::Tensor& open = input.heads();
  found.heads = gradients[0].detach()[0].to(at::kCPU, at::kDouble) *
                at::where(open.eq(0), at::ones_like(open), open);
  double sum = 0, largest = std::max(1.0, std::abs(input.value()));
  for (size_t i = 0; i < sources.size(); ++i) {
    const double part = product(gradients[i + 2], sources[i]);
    sum += part;
    largest = std::max(largest, std::abs(part));
  }
  if (biases && units.attention_sublayers) found.residual = input.value() - sum;
  // Without norms on the way the stream hands gradients on as they are.
  const bool straight = last.hidden.sizes() == start.hidden.sizes() &&
                        at::allclose(gradients[1], gradients[2], kTolerance,
                                     kTolerance * gradients[1].abs().max().item<double>());
  const bool adds_up = found.residual && std::abs(*found.residual) <= kTolerance * largest;
  found.linearised = !(straight && adds_up);
  return found;
}

}  // namespace headkit
