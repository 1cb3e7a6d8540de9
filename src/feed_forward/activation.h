#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/params.h"

namespace headkit {

/// By PyTorch's operators.
at::Tensor activate(kernels::Activation kind, const at::Tensor& x);
/// Gradient of x for that of the result.
at::Tensor activate_backward(kernels::Activation kind, const at::Tensor& grad, const at::Tensor& x);

}  // namespace headkit
