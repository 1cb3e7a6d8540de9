#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "headkit/plan/work_list.h"
#include "kernels/kernel_table.h"

namespace headkit {

/// The gradient of an additive bias, four-dimensional and broadcastable to [B, H, T, S], summed in
/// float64. Pairs that share a slice of it add to it one after the other in a settled order,
/// whichever threads they run on.
class BiasSum {
 public:
  BiasSum(const at::Tensor& bias, const WorkList& list);

  /// Settles the order: once for each pair of the list, in the order of the tasks that compute
  /// them, before those run.
  void queue(int64_t pair, int64_t sample, int64_t head);
  /// Adds one pair, when those before it are done; `params` without `out` and its strides.
  void add(kernels::BiasGradientParams params, int64_t pair, int64_t sample, int64_t head,
           const kernels::KernelTable& table);

  /// float32.
  at::Tensor sum() const { return sum_.to(at::kFloat); }

 private:
  int64_t slice(int64_t sample, int64_t head) const;

  const at::Tensor sum_;
  std::vector<int64_t> turn_;                // of each pair, within its slice
  std::vector<int64_t> queued_;              // pairs of each slice
  std::vector<std::atomic<int64_t>> added_;  // the same
};

}  // namespace headkit
