#include "headkit/gates/pooled_state.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "headkit/core/error.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

template <typename Value>
void pool(const at::Tensor& hidden, const at::Tensor& valid, const at::Tensor& empty,
          at::Tensor& mean) {
  const int64_t batch = hidden.size(0), tokens = hidden.size(1), width = hidden.size(2);
  const Value* const x = hidden.const_data_ptr<Value>();
  const bool* const is_valid = valid.defined() ? valid.const_data_ptr<bool>() : nullptr;
  const double* const instead = empty.const_data_ptr<double>();
  double* const out = mean.mutable_data_ptr<double>();
  run_queue(queue_threads(), batch, 0, [&](int64_t b, float*) {
    double* const sum = out + b * width;
    std::fill(sum, sum + width, 0.0);
    int64_t count = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      if (is_valid != nullptr && !is_valid[b * tokens + t]) continue;
      ++count;
      const Value* const row = x + (b * tokens + t) * width;
      for (int64_t j = 0; j < width; ++j) sum[j] += static_cast<double>(row[j]);
    }
    if (count == 0) {
      std::copy(instead, instead + width, sum);
    } else {
      for (int64_t j = 0; j < width; ++j) sum[j] /= static_cast<double>(count);
    }
  });
}

}  // namespace

at::Tensor pooled_state(const char* operation, const at::Tensor& hidden,
                        const at::Tensor& attention_mask, const at::Tensor& empty) {
  HEADKIT_CHECK(
      hidden.defined() && hidden.dim() == 3 && hidden.is_floating_point(), operation,
      "floating-point hidden states of shape [batch, tokens, D]",
      hidden.defined() ? c10::str(hidden.scalar_type(), " of shape ", hidden.sizes()) : "none");
  const int64_t batch = hidden.size(0), tokens = hidden.size(1), width = hidden.size(2);
  HEADKIT_CHECK(
      !attention_mask.defined() || attention_mask.sizes() == at::IntArrayRef({batch, tokens}),
      operation, c10::str("a mask of shape [", batch, ", ", tokens, "]"), "shape ",
      attention_mask.sizes());
  const at::Tensor instead = empty.defined() ? empty.to(at::kCPU, at::kDouble).contiguous()
                                             : at::zeros({width}, at::kDouble);
  HEADKIT_CHECK(instead.sizes() == at::IntArrayRef({width}), operation,
                c10::str("hidden states of width ", instead.size(0)), "width ", width);
  const at::Tensor valid =
      attention_mask.defined() ? attention_mask.to(at::kCPU, at::kBool).contiguous() : at::Tensor();
  at::Tensor mean = at::empty({batch, width}, at::kDouble);
  const at::Tensor values = hidden.detach().to(at::kCPU);
  if (values.scalar_type() == at::kDouble) {
    pool<double>(values.contiguous(), valid, instead, mean);
  } else {
    pool<float>(values.to(at::kFloat).contiguous(), valid, instead, mean);
  }
  const at::Tensor broken = mean.isfinite().logical_not().any(1).nonzero();
  HEADKIT_CHECK(broken.size(0) == 0, operation, "finite hidden states",
                "NaN or infinity in sample ", broken[0].item<int64_t>());
  return mean;
}

}  // namespace headkit
