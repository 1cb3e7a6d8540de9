#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace headkit {

/// Throws std::invalid_argument unless `kept` are ascending indices below `count`.
void check_kept(const char* operation, const char* units, const std::vector<int64_t>& kept,
                int64_t count);
/// Throws std::invalid_argument unless `given` may stand in place of `old`: both undefined, or of
/// this shape and of its dtype.
void check_replacement(const char* operation, const char* name, const at::Tensor& given,
                       const at::Tensor& old, at::IntArrayRef shape);
/// A leaf with the values of `given`, on the device and with the `requires_grad` of `old`.
at::Tensor in_place_of(const at::Tensor& given, const at::Tensor& old);

}  // namespace headkit
