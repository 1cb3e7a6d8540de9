#include "feed_forward/activation.h"

#include <ATen/ATen.h>

namespace headkit {

using kernels::Activation;

at::Tensor activate(Activation kind, const at::Tensor& x) {
  switch (kind) {
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kRelu:
      return at::relu(x);
  }
  return x;
}

at::Tensor activate_backward(Activation kind, const at::Tensor& grad, const at::Tensor& x) {
  switch (kind) {
    case Activation::kGelu:
      return at::gelu_backward(grad, x);
    case Activation::kGeluTanh:
      return at::gelu_backward(grad, x, "tanh");
    case Activation::kSilu:
      return at::silu_backward(grad, x);
    case Activation::kRelu:
      return at::threshold_backward(grad, x, 0);
  }
  return grad;
}

}  // namespace headkit
