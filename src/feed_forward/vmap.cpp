#include <ATen/ATen.h>
#include <ATen/functorch/PlumbingHelper.h>
#include <torch/library.h>

#include <optional>
#include <utility>
#include <vector>

#include "feed_forward/feed_forward_call.h"
#include "operators/operator_signature.h"
#include "operators/vmap_level.h"

namespace headkit {
namespace {

// A call in which some tensors carry one more dimension, in front.
struct BatchedCall {
  FeedForwardCall call;
  std::array<bool, kFeedForwardArguments> batched = {};
  bool prefix_batched = false;
  int64_t size = -1;  // of that dimension; -1 if no tensor carries it
};

BatchedCall unwrap_call(const FeedForwardCall& call) {
  check_call(call);
  const int64_t level = current_vmap_level();
  BatchedCall result;
  FeedForwardTensors tensors = differentiable_tensors(call);
  for (size_t i = 0; i < kFeedForwardArguments; ++i) {
    if (tensors[i].defined()) result.batched[i] = unwrap_vmap(tensors[i], level, result.size);
  }
  result.call = with_differentiable(call, tensors);
  if (call.prefix) {
    result.prefix_batched = unwrap_vmap(*result.call.prefix, level, result.size);
  }
  return result;
}

FeedForwardCall element(const BatchedCall& batch, int64_t index) {
  FeedForwardTensors tensors = differentiable_tensors(batch.call);
  for (size_t i = 0; i < kFeedForwardArguments; ++i) {
    if (batch.batched[i]) tensors[i] = tensors[i].select(0, index);
  }
  FeedForwardCall call = with_differentiable(batch.call, tensors);
  if (batch.prefix_batched) call.prefix = batch.call.prefix->select(0, index);
  return call;
}

// The mapped dimension can join B: no weight carries it.
bool folds(const BatchedCall& batch) {
  for (size_t i = 0; i < kFeedForwardArguments; ++i) {
    if (batch.batched[i] && i != kFeedForwardX && i != kBlockGate) return false;
  }
  return true;
}

FeedForwardCall fold(const BatchedCall& batch) {
  FeedForwardCall call = batch.call;
  const c10::SymInt samples = call.x.sym_size(batch.batched[kFeedForwardX] ? 1 : 0);
  // [size?, B or 1, ...] -> [size * B, ...]
  const auto join = [&](at::Tensor tensor, bool batched) {
    if (!batched) tensor = tensor.unsqueeze(0);
    std::vector<c10::SymInt> shape = tensor.sym_sizes().vec();
    shape[0] = batch.size;
    shape[1] = samples;
    return tensor.expand_symint(shape).flatten(0, 1);
  };
  call.x = join(call.x, batch.batched[kFeedForwardX]);
  if (call.gate) {
    const bool batched = batch.batched[kBlockGate];
    if (call.gate->dim() - batched > 1) {
      call.gate = join(*call.gate, batched);
    } else if (batched) {
      call.gate = join(call.gate->unsqueeze(1), true);
    }
  }
  if (call.prefix) call.prefix = join(*call.prefix, batch.prefix_batched);
  return call;
}

at::Tensor forward_rule(const FeedForwardCall& call) {
  const BatchedCall batch = unwrap_call(call);
  const int64_t level = current_vmap_level();
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  if (batch.size < 0) return dispatch_feed_forward(batch.call);
  at::Tensor y;
  if (folds(batch)) {
    y = dispatch_feed_forward(fold(batch));
    y = y.unflatten_symint(0, {batch.size, y.sym_size(0) / batch.size});
  } else {
    std::vector<at::Tensor> parts;
    for (int64_t i = 0; i < batch.size; ++i) {
      parts.push_back(dispatch_feed_forward(element(batch, i)));
    }
    y = at::stack(parts);
  }
  return at::functorch::makeBatched(y, 0, level);
}

// One call for each element, as many rows are kept for it as without vmap.
KeepingResult keeping_rule(const FeedForwardCall& call) {
  const BatchedCall batch = unwrap_call(call);
  const int64_t level = current_vmap_level();
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  if (batch.size < 0) return dispatch_feed_forward_keeping(batch.call);
  std::vector<at::Tensor> outputs, rows;
  for (int64_t i = 0; i < batch.size; ++i) {
    const auto [y, kept] = dispatch_feed_forward_keeping(element(batch, i));
    outputs.push_back(y);
    rows.push_back(kept);
  }
  return {at::functorch::makeBatched(at::stack(outputs), 0, level),
          at::functorch::makeBatched(at::stack(rows), 0, level)};
}

std::vector<at::Tensor> backward_rule(const at::Tensor& grad, const FeedForwardCall& call,
                                      const std::optional<at::Tensor>& kept, FeedForwardMask mask) {
  BatchedCall batch = unwrap_call(call);
  const int64_t level = current_vmap_level();
  at::Tensor dy = grad;
  const bool grad_batched = unwrap_vmap(dy, level, batch.size);
  at::Tensor rows = kept.value_or(at::Tensor());
  const bool kept_batched = rows.defined() && unwrap_vmap(rows, level, batch.size);
  const auto kept_of = [&](int64_t i) {
    if (!rows.defined()) return std::optional<at::Tensor>();
    return std::optional(kept_batched ? rows.select(0, i) : rows);
  };
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  if (batch.size < 0) return dispatch_feed_forward_backward(dy, batch.call, kept_of(0), mask);
  std::vector<std::vector<at::Tensor>> by_gradient;
  for (int64_t i = 0; i < batch.size; ++i) {
    const std::vector<at::Tensor> part = dispatch_feed_forward_backward(
        grad_batched ? dy.select(0, i) : dy, element(batch, i), kept_of(i), mask);
    by_gradient.resize(part.size());
    for (size_t j = 0; j < part.size(); ++j) by_gradient[j].push_back(part[j]);
  }
  std::vector<at::Tensor> result;
  for (const auto& parts : by_gradient) {
    result.push_back(at::functorch::makeBatched(at::stack(parts), 0, level));
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(headkit, FuncTorchBatched, m) {
  using Schema = Signature<feed_forward_call>;
  m.impl("gated_feed_forward", &Schema::Of<forward_rule>::run);
  m.impl("gated_feed_forward_keeping", &Schema::Of<keeping_rule>::run);
  m.impl("gated_feed_forward_backward", &Schema::Of<backward_rule>::run);
}

}  // namespace headkit
