#include "pruners/output_refit.h"

#include <ATen/ATen.h>

#include "headkit/pruners/least_squares.h"

namespace headkit {
namespace {

at::Tensor in_double(const at::Tensor& tensor) { return tensor.detach().to(at::kCPU, at::kDouble); }

}  // namespace

at::Tensor channels_of(const at::Tensor& units, int64_t width) {
  return (units.unsqueeze(1) * width + at::arange(width)).flatten();
}

OutputRefit refit_output(const ProjectionMoments& all, const at::Tensor& weight,
                         const at::Tensor& bias, const at::Tensor& kept, double ridge) {
  const ProjectionMoments moments = (bias.defined() ? all.centred() : all).select(kept);
  const at::Tensor start = in_double(weight).index_select(1, kept);
  OutputRefit found;
  at::Tensor fitted = at::zeros(weight.sizes(), at::kDouble);
  at::Tensor constant = all.target_sum;
  if (kept.numel() > 0) {
    const double scale = moments.gram.diagonal().mean().item<double>();
    const at::Tensor columns = refit_projection(moments.gram, moments.cross, start, ridge * scale);
    fitted.index_copy_(1, kept, columns);
    constant = constant - at::mv(columns, moments.input_sum);
  }
  found.weight = fitted.to(weight.scalar_type());
  if (bias.defined()) {
    found.bias = (in_double(bias) + constant / all.tokens).to(bias.scalar_type());
  }
  return found;
}

}  // namespace headkit
