#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/attention_problem.h"
#include "headkit/plan/work_list.h"
#include "kernels/params.h"

namespace headkit {

/// What the CPU kernels compute of a problem that they do not refuse.
struct CpuPairs {
  /// The keys of one sample: those that its padding mask leaves and that some query reaches.
  struct Keys {
    int64_t first = 0;
    int64_t count = 0;
    std::vector<int32_t> rows;  // empty if they are `first`, `first` + 1, ...
  };

  at::Tensor gate;         // [B, H] float32, contiguous; ones without a gate
  WorkList list;           // pairs with something to attend to; `scale` is their gate
  WorkList kv;             // KV heads that any pair of `list` reads
  std::vector<Keys> keys;  // [B]

  explicit CpuPairs(const AttentionProblem& problem);

  /// Rows of the keys of a sample, nullptr if they are a run from `first`.
  const int32_t* key_rows(int64_t sample) const {
    return keys[sample].rows.empty() ? nullptr : keys[sample].rows.data();
  }
  /// [keys] ascending positions.
  const int32_t* key_position(int64_t sample) const {
    return keys[sample].rows.empty() ? positions_.data() + keys[sample].first
                                     : keys[sample].rows.data();
  }
  /// The place in `kv` of the KV head that a pair reads.
  int64_t kv_entry(int64_t sample, int64_t head) const;
  /// What a query of a pair may see.
  kernels::ScoreParams scores(int64_t sample, int64_t head) const;

 private:
  std::vector<int32_t> positions_;  // 0, 1, 2, ...
  std::vector<int64_t> kv_head_;    // [H]
  at::Tensor bias_;                 // undefined or as attn_bias, float32
  int64_t query_offset_, window_;
  bool causal_;
};

/// Whether each head of a list runs for any sample.
std::vector<bool> open_heads(const WorkList& list);

}  // namespace headkit
