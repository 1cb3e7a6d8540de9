#pragma once

#include <ATen/ATen.h>

namespace headkit {

/// A contiguous float32 tensor of the same values: what the CPU kernels read. The tensor itself
/// where it is one already; undefined for an undefined tensor.
inline at::Tensor in_float32(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.to(at::kFloat).contiguous() : tensor;
}

}  // namespace headkit
