#include "explain/write_norms.h"

#include <ATen/ATen.h>

#include "scorers/context_moments.h"

namespace headkit {
namespace {

// Mean over valid tokens; `values` [T, ..], `valid` [1, T] or undefined.
at::Tensor token_mean(const at::Tensor& values, const at::Tensor& valid) {
  if (!valid.defined()) return values.mean(0);
  const at::Tensor weight = valid[0].to(at::kCPU, at::kDouble);
  return at::tensordot(weight, values, {0}, {0}) / weight.sum().clamp_min(1);
}

}  // namespace

WriteNorms write_norms(GatedModel& model, const InputRuns& input) {
  const HeadMask there = model.heads();
  const at::Tensor& heads = input.heads();
  WriteNorms norms{at::zeros_like(heads), at::zeros_like(heads)};
  for (int64_t layer = 0; layer < heads.size(0); ++layer) {
    const std::vector<int64_t> present = there.layer_heads(layer);
    if (present.empty()) continue;
    const auto place = static_cast<size_t>(layer);
    const at::Tensor context =
        input.taps().head_context[place][0].to(at::kCPU, at::kDouble);  // [T, h, dh]
    const at::Tensor o = output_slices(model, layer);
    // |a W_O^T|^2 = a W_O^T W_O a^T
    const at::Tensor gram = o.transpose(1, 2).matmul(o);
    const at::Tensor norm =
        at::einsum("thd,hde,the->th", {context, gram, context}).clamp_min(0).sqrt();
    const at::Tensor index = at::tensor(present, at::kLong);
    const at::Tensor gate = heads[layer].index_select(0, index);
    const at::Tensor factor = at::where(gate.eq(0), at::ones_like(gate), gate.abs());
    const at::Tensor write = factor * token_mean(norm, input.taps().valid[place]);
    const ModelState& before = input.runs().before(layer);
    const double stream = token_mean(before.hidden[0].detach().to(at::kCPU, at::kDouble).norm(2, 1),
                                     before.attention_mask)
                              .item<double>();
    norms.write[layer].index_copy_(0, index, write);
    if (stream > 0) norms.relative[layer].index_copy_(0, index, write / stream);
  }
  return norms;
}

}  // namespace headkit
