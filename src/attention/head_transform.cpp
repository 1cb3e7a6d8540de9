#include "attention/head_transform.h"

#include <ATen/ATen.h>

namespace headkit {
namespace {

at::Tensor inverse_rms(const at::Tensor& wide, double eps) {
  return wide.square().mean(-1, true).add(eps).rsqrt();
}

// x * cos + R x * sin on the first dr dimensions; R = (0 -1; 1 0) on the two halves, or its
// transpose where `inverse`: there the sines lie inside.
at::Tensor rotate(const at::Tensor& heads, const at::Tensor& cosines, const at::Tensor& sines,
                  bool inverse) {
  const int64_t width = cosines.size(2), half = width / 2;
  const at::Tensor turned = heads.narrow(3, 0, width);
  const at::Tensor cos = cosines.unsqueeze(1), sin = sines.unsqueeze(1);
  const auto swap = [&](const at::Tensor& values) {
    const at::Tensor low = values.narrow(3, 0, half), high = values.narrow(3, half, half);
    return inverse ? at::cat({high, -low}, 3) : at::cat({-high, low}, 3);
  };
  const at::Tensor result = turned * cos + (inverse ? swap(turned * sin) : swap(turned) * sin);
  if (width == heads.size(3)) return result;
  return at::cat({result, heads.narrow(3, width, heads.size(3) - width)}, 3);
}

}  // namespace

at::Tensor HeadTransform::apply(const at::Tensor& heads) const {
  at::Tensor result = heads;
  if (norm_weight.defined()) {
    const at::Tensor wide = heads.to(sum_dtype(heads.scalar_type()));
    result = norm_weight * (wide * inverse_rms(wide, norm_eps)).to(heads.scalar_type());
  }
  return rotary_cos.defined() ? rotate(result, rotary_cos, rotary_sin, false) : result;
}

at::Tensor HeadTransform::backward(const at::Tensor& heads, at::Tensor grad,
                                   at::Tensor& norm_sum) const {
  if (rotary_cos.defined()) {
    grad = rotate(grad, rotary_cos.to(grad.scalar_type()), rotary_sin.to(grad.scalar_type()), true);
  }
  if (!norm_weight.defined()) return grad;
  const at::Tensor wide = heads.to(grad.scalar_type());
  const at::Tensor inverse = inverse_rms(wide, norm_eps);
  const at::Tensor normed = wide * inverse;
  if (norm_sum.defined()) norm_sum.add_((grad * normed).sum({0, 1, 2}));
  const at::Tensor inner = grad * norm_weight.to(grad.scalar_type());
  return (inner - normed * (inner * normed).mean(-1, true)) * inverse;
}

}  // namespace headkit
