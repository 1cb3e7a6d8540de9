#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "kernels/dispatch.h"
#include "operators/float32.h"
#include "operators/rounding.h"

namespace headkit {

/// What launches multiply: float32, to which any other type is widened, or bfloat16 in pairs along
/// the depth of a product (bf16_params.h). Kernels of the same name take parameters with members of
/// the same names, so that one launch is written for both. A pair is as long as a float: places and
/// sizes of workspaces are counted in floats, whichever lie there.
struct Float32Operand {
  using Kernels = kernels::KernelTable;
  using Project = kernels::ProjectParams;
  using Attend = kernels::AttendParams;
  using SumProjections = kernels::SumProjectionsParams;
  using Element = float;
  using Packed = float;
  static constexpr bool kPairs = false;
  static constexpr at::ScalarType kDtype = at::kFloat;
  /// On queries, beside the scale of attention: bfloat16 kernels have a softmax of base 2.
  static constexpr double kScoreScale = 1.0;

  static const Kernels& kernels() { return kernels::kernel_table(); }
  /// What so many elements along the depth of a product become.
  static int64_t depth(int64_t elements) { return elements; }
};

/// Only of a level that multiplies bfloat16 natively.
struct Bf16Operand {
  using Kernels = kernels::Bf16Kernels;
  using Project = kernels::Bf16ProjectParams;
  using Attend = kernels::Bf16AttendParams;
  using SumProjections = kernels::Bf16SumProjectionsParams;
  using Element = kernels::Bf16;
  using Packed = kernels::Bf16Pair;
  static constexpr bool kPairs = true;
  static constexpr at::ScalarType kDtype = at::kBFloat16;
  static constexpr double kScoreScale = 1.4426950408889634;

  static const Kernels& kernels() { return *kernels::kernel_table().bf16; }
  static int64_t depth(int64_t elements) { return ceil_div(elements, 2); }
};

/// Whether products of this dtype are multiplied as bfloat16.
inline bool multiplies_bf16(at::ScalarType dtype) {
  return dtype == at::kBFloat16 && kernels::kernel_table().bf16 != nullptr;
}

/// A contiguous tensor of elements, the tensor itself where it is one; undefined for an undefined.
template <class Operand>
at::Tensor elements_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.to(Operand::kDtype).contiguous() : tensor;
}

/// The elements of such a tensor from a place on, nullptr of an undefined tensor.
template <class Operand>
const typename Operand::Element* data_of(const at::Tensor& tensor, int64_t place = 0) {
  using Element = typename Operand::Element;
  return tensor.defined() ? static_cast<const Element*>(tensor.const_data_ptr()) + place : nullptr;
}

}  // namespace headkit
