#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace headkit {

/// Given keys or values as the CPU kernels read them: rows of dh that need not follow each other.
class GivenRows {
 public:
  GivenRows() = default;
  /// `given` [B, Hkv, S, dh]; copied only if a row has gaps.
  explicit GivenRows(const at::Tensor& given)
      : rows_(given.stride(3) == 1 || given.size(3) == 1 ? given : given.contiguous()) {}

  /// Row 0 of one KV head of one sample, of the element type of `given`.
  template <class Element = float>
  const Element* of(int64_t sample, int64_t kv_head) const {
    return static_cast<const Element*>(rows_.const_data_ptr()) + sample * rows_.stride(0) +
           kv_head * rows_.stride(1);
  }
  /// Elements from one row to the next.
  int64_t stride() const { return rows_.stride(2); }

 private:
  at::Tensor rows_;
};

}  // namespace headkit
