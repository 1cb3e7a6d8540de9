#pragma once

#include <ATen/ATen.h>
#include <ATen/functorch/DynamicLayer.h>
#include <ATen/functorch/PlumbingHelper.h>

namespace headkit {

/// The level of the innermost vmap.
inline int64_t current_vmap_level() { return at::functorch::maybeCurrentDynamicLayer()->layerId(); }

/// Takes the dimension of `level` out of `tensor`, to the front, and notes its size. Returns
/// whether there is one.
inline bool unwrap_vmap(at::Tensor& tensor, int64_t level, int64_t& size) {
  auto [value, dim] = at::functorch::unwrapTensorAtLevel(tensor, level);
  tensor = dim ? value.movedim(*dim, 0) : value;
  if (dim) size = tensor.size(0);
  return dim.has_value();
}

}  // namespace headkit
