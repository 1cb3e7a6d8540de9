#include "attention/bias_sum.h"

#include <ATen/ATen.h>

#include <thread>

namespace headkit {

BiasSum::BiasSum(const at::Tensor& bias, const WorkList& list)
    : sum_(at::zeros(bias.sizes(), bias.options().dtype(at::kDouble))),
      turn_(list.pairs()),
      queued_(bias.size(0) * bias.size(1)),
      added_(bias.size(0) * bias.size(1)) {}

int64_t BiasSum::slice(int64_t sample, int64_t head) const {
  return (sum_.size(0) == 1 ? 0 : sample) * sum_.size(1) + (sum_.size(1) == 1 ? 0 : head);
}

void BiasSum::queue(int64_t pair, int64_t sample, int64_t head) {
  turn_[pair] = queued_[slice(sample, head)]++;
}

void BiasSum::add(kernels::BiasGradientParams params, int64_t pair, int64_t sample, int64_t head,
                  const kernels::KernelTable& table) {
  const auto stride = [this](int64_t dim) { return sum_.size(dim) == 1 ? 0 : sum_.stride(dim); };
  // Tasks are taken in order, so those before this one run or are done.
  std::atomic<int64_t>& added = added_[slice(sample, head)];
  while (added.load(std::memory_order_acquire) != turn_[pair]) std::this_thread::yield();
  params.out = sum_.mutable_data_ptr<double>() + sample * stride(0) + head * stride(1);
  params.query_stride = stride(2);
  params.key_stride = stride(3);
  table.bias_gradient(params);
  added.store(turn_[pair] + 1, std::memory_order_release);
}

}  // namespace headkit
