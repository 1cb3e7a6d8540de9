#pragma once

#include <ATen/core/Tensor.h>

#include "operators/sum_dtype.h"

namespace headkit {

/// What happens to projected queries or keys [n, m, T, dh] before they meet: RMS norm over dh, then
/// rotary embedding. Either may be absent.
///
/// The norm is computed in `sum_dtype` and rounded before its weight is applied; the rotary
/// embedding turns the first dr of dh dimensions, dimension i together with i + dr / 2.
struct HeadTransform {
  at::Tensor norm_weight;  // undefined or [dh]
  double norm_eps = 1e-6;
  at::Tensor rotary_cos, rotary_sin;  // undefined or [n or 1, T, dr]

  bool empty() const { return !norm_weight.defined() && !rotary_cos.defined(); }
  /// Differentiable.
  at::Tensor apply(const at::Tensor& heads) const;
  /// Gradient of `heads`, the argument of `apply`, for `grad` in `sum_dtype`. Adds that of the norm
  /// weight to `norm_sum` [dh], where defined, in place.
  at::Tensor backward(const at::Tensor& heads, at::Tensor grad, at::Tensor& norm_sum) const;
};

}  // namespace headkit
