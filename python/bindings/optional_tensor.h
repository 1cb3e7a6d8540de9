#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace headkit::bindings {

/// Python's None is an undefined tensor in C++, and back.
inline at::Tensor or_undefined(const std::optional<at::Tensor>& tensor) {
  return tensor.value_or(at::Tensor());
}
inline std::optional<at::Tensor> or_none(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

}  // namespace headkit::bindings
