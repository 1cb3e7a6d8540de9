#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/attention_problem.h"
#include "headkit/plan/work_list.h"

namespace headkit {

/// What the CPU kernels compute of a problem that they do not refuse.
struct CpuPairs {
  /// The keys of one sample: those tokens that its padding mask leaves.
  struct Keys {
    int64_t count = 0;
    std::vector<int32_t> rows;  // empty if they are the first `count` tokens
  };

  at::Tensor gate;         // [B, H] float32, contiguous; ones without a gate
  WorkList list;           // pairs with something to attend to; `scale` is their gate
  std::vector<Keys> keys;  // [B]

  explicit CpuPairs(const AttentionProblem& problem);
  /// Rows of the keys of a sample, nullptr if they are its first tokens.
  const int32_t* key_rows(int64_t sample) const {
    return keys[sample].rows.empty() ? nullptr : keys[sample].rows.data();
  }
  /// [keys] ascending tokens.
  const int32_t* key_position(int64_t sample) const {
    return keys[sample].rows.empty() ? positions_.data() : keys[sample].rows.data();
  }

 private:
  std::vector<int32_t> positions_;  // 0, 1, 2, ...
};

}  // namespace headkit
