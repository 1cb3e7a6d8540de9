#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "feed_forward/feed_forward_call.h"

namespace headkit {

/// Where the kernels find what is kept (`kept_shape`) of some rows of x [B * T, D]: of those in
/// `index`, or if that is empty of the ones from `first` on. Nothing for an undefined tensor.
inline kernels::KeptRows kept_rows(const FeedForwardProblem& problem, const at::Tensor& kept,
                                   int64_t first, const std::vector<int32_t>& index) {
  if (!kept.defined()) return {};
  const int64_t stride = kept.size(2);
  float* in = kept.mutable_data_ptr<float>() + (index.empty() ? first * stride : 0);
  return {.in = in,
          .up = problem.weights.up.defined() ? in + problem.neurons : nullptr,
          .rows = index.empty() ? nullptr : index.data(),
          .stride = stride,
          .neurons = problem.neurons};
}

}  // namespace headkit
