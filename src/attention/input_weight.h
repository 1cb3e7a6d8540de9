#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "attention/packed_weights.h"
#include "operators/task_queue.h"

namespace headkit {

/// A projection W [heads * dh, D] as the gradient of its input, of some tokens, reads it: as it is
/// where they are few and its rows are whole vectors, else in panels.
class InputWeight {
 public:
  InputWeight(const at::Tensor& weight, int64_t head_dim, const std::vector<bool>& open,
              int64_t tokens, Arena& arena);

  const float* at(int64_t head) const {
    if (panels_) return panels_->at(head, 0);
    return rows_.const_data_ptr<float>() + head * head_dim_ * rows_.size(1);
  }
  /// Of kernels::SumProjectionsParams.
  int64_t stride() const { return panels_ ? 0 : rows_.size(1); }

 private:
  const at::Tensor rows_;
  const int64_t head_dim_;
  std::optional<PackedHeads> panels_;
};

}  // namespace headkit
