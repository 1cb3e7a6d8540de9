#include "models/layer_norm.h"

#include <ATen/ATen.h>

#include "models/direct_runs.h"

namespace headkit {

at::Tensor LayerNorm::operator()(const at::Tensor& x, const at::Tensor& gate) const {
  if (gate.defined()) return over_open(x, gate);
  if (DirectRuns::in_this_thread() && x.requires_grad()) return with_constant_scale(x);
  return at::layer_norm(x, weight_.sizes(), weight_, bias_, eps_);
}

at::Tensor LayerNorm::over_open(const at::Tensor& x, const at::Tensor& gate) const {
  const at::Tensor gates = gate.to(x.device());
  const at::Tensor kept = gates.detach().nonzero().flatten();
  at::Tensor zeros = at::zeros(x.sizes(), x.options());
  if (kept.numel() == 0) return zeros;
  const auto open = [&](const at::Tensor& values) { return values.index_select(-1, kept); };
  const at::Tensor normed =
      at::layer_norm(open(x), {kept.numel()}, open(weight_), open(bias_), eps_);
  return zeros.index_copy(-1, kept, normed * open(gates).to(normed.scalar_type()));
}

at::Tensor LayerNorm::with_constant_scale(const at::Tensor& x) const {
  const at::Tensor centred = x - x.mean(-1, /*keepdim=*/true);
  const at::Tensor scale = (centred.detach().square().mean(-1, true) + eps_).rsqrt();
  return centred * scale * weight_.detach() + bias_;
}

void LayerNorm::visit(const std::string& name, int64_t width, const ParameterVisitor& visitor) {
  visitor(name + ".weight", weight_, {width});
  visitor(name + ".bias", bias_, {width});
}

}  // namespace headkit
