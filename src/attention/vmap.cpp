#include <ATen/ATen.h>
#include <ATen/functorch/PlumbingHelper.h>
#include <torch/library.h>

#include <optional>
#include <utility>
#include <vector>

#include "attention/attention_call.h"
#include "operators/operator_signature.h"
#include "operators/vmap_level.h"

namespace headkit {
namespace {

// A call in which some tensors carry one more dimension, in front.
struct BatchedCall {
  AttentionCall call;
  std::array<bool, kDifferentiable> batched = {};  // by differentiable argument
  std::array<bool, kFixed> fixed_batched = {};     // by other tensor
  int64_t size = -1;                               // of that dimension; -1 if no tensor carries it
};

BatchedCall unwrap_call(const AttentionCall& call) {
  check_call(call);
  const int64_t level = current_vmap_level();
  BatchedCall result;
  DifferentiableTensors tensors = differentiable_tensors(call);
  for (size_t i = 0; i < kDifferentiable; ++i) {
    if (tensors[i].defined()) result.batched[i] = unwrap_vmap(tensors[i], level, result.size);
  }
  FixedTensors fixed = fixed_tensors(call);
  for (size_t i = 0; i < kFixed; ++i) {
    if (fixed[i].defined()) result.fixed_batched[i] = unwrap_vmap(fixed[i], level, result.size);
  }
  result.call = with_fixed(with_differentiable(call, tensors), fixed);
  return result;
}

AttentionCall element(const BatchedCall& batch, int64_t index) {
  DifferentiableTensors tensors = differentiable_tensors(batch.call);
  for (size_t i = 0; i < kDifferentiable; ++i) {
    if (batch.batched[i]) tensors[i] = tensors[i].select(0, index);
  }
  FixedTensors fixed = fixed_tensors(batch.call);
  for (size_t i = 0; i < kFixed; ++i) {
    if (batch.fixed_batched[i]) fixed[i] = fixed[i].select(0, index);
  }
  return with_fixed(with_differentiable(batch.call, tensors), fixed);
}

// The mapped dimension can join B: no weight carries it, and no dropout, whose mask is a matter of
// the place in the batch.
bool folds(const BatchedCall& batch) {
  for (size_t i = 0; i < kDifferentiable; ++i) {
    const bool by_sample =
        i == kX || i == kKv || i == kK || i == kV || i == kGate || i == kAttnBias;
    if (batch.batched[i] && !by_sample) return false;
  }
  return batch.call.dropout_p == 0.0;
}

AttentionCall fold(const BatchedCall& batch) {
  AttentionCall call = batch.call;
  const c10::SymInt samples = call.x.sym_size(batch.batched[kX] ? 1 : 0);
  // [size?, B or 1, ...] -> [size * B, ...]
  const auto join = [&](at::Tensor tensor, bool batched) {
    if (!batched) tensor = tensor.unsqueeze(0);
    std::vector<c10::SymInt> shape = tensor.sym_sizes().vec();
    shape[0] = batch.size;
    shape[1] = samples;
    return tensor.expand_symint(shape).flatten(0, 1);
  };
  call.x = join(call.x, batch.batched[kX]);
  if (call.kv) call.kv = join(*call.kv, batch.batched[kKv]);
  if (call.keys_given) {
    call.k = join(call.k, batch.batched[kK]);
    call.v = join(call.v, batch.batched[kV]);
  }
  if (call.gate) {
    const bool batched = batch.batched[kGate];
    const int64_t dim = call.gate->dim() - batched;
    if (dim > 1) {
      call.gate = join(*call.gate, batched);
    } else if (batched) {
      call.gate = join(call.gate->unsqueeze(1), true);
    }
  }
  FixedTensors fixed = fixed_tensors(call);
  for (size_t i = 0; i < kFixed; ++i) {
    if (fixed[i].defined()) fixed[i] = join(fixed[i], batch.fixed_batched[i]);
  }
  call = with_fixed(std::move(call), fixed);
  if (call.attn_bias) {
    const bool batched = batch.batched[kAttnBias];
    at::Tensor bias = *call.attn_bias;
    while (bias.dim() - batched < 4) bias = bias.unsqueeze(batched ? 1 : 0);
    call.attn_bias = join(bias, batched);
  }
  return call;
}

at::Tensor forward_rule(const AttentionCall& call) {
  const BatchedCall batch = unwrap_call(call);
  const int64_t level = current_vmap_level();
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  if (batch.size < 0) return dispatch_attention(batch.call);
  at::Tensor y;
  if (folds(batch)) {
    y = dispatch_attention(fold(batch));
    y = y.unflatten_symint(0, {batch.size, y.sym_size(0) / batch.size});
  } else {
    std::vector<at::Tensor> parts;
    for (int64_t i = 0; i < batch.size; ++i) {
      parts.push_back(dispatch_attention(element(batch, i)));
    }
    y = at::stack(parts);
  }
  return at::functorch::makeBatched(y, 0, level);
}

// One call for each element: what is saved has no dimension that the mapped one could join.
SavingResult saving_rule(const AttentionCall& call) {
  const BatchedCall batch = unwrap_call(call);
  const int64_t level = current_vmap_level();
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  if (batch.size < 0) return dispatch_attention_saving(batch.call);
  std::vector<at::Tensor> outputs, saved;
  for (int64_t i = 0; i < batch.size; ++i) {
    const auto [y, pairs] = dispatch_attention_saving(element(batch, i));
    outputs.push_back(y);
    saved.push_back(pairs);
  }
  return {at::functorch::makeBatched(at::stack(outputs), 0, level),
          at::functorch::makeBatched(at::stack(saved), 0, level)};
}

std::vector<at::Tensor> backward_rule(const at::Tensor& grad, const AttentionCall& call,
                                      const std::optional<at::Tensor>& saved, GradientMask mask) {
  BatchedCall batch = unwrap_call(call);
  const int64_t level = current_vmap_level();
  at::Tensor dy = grad;
  const bool grad_batched = unwrap_vmap(dy, level, batch.size);
  at::Tensor pairs = saved.value_or(at::Tensor());
  const bool saved_batched = pairs.defined() && unwrap_vmap(pairs, level, batch.size);
  const auto saved_of = [&](int64_t i) {
    if (!pairs.defined()) return std::optional<at::Tensor>();
    return std::optional(saved_batched ? pairs.select(0, i) : pairs);
  };
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  if (batch.size < 0) return dispatch_attention_backward(dy, batch.call, saved_of(0), mask);
  std::vector<std::vector<at::Tensor>> by_gradient;
  for (int64_t i = 0; i < batch.size; ++i) {
    const std::vector<at::Tensor> part = dispatch_attention_backward(
        grad_batched ? dy.select(0, i) : dy, element(batch, i), saved_of(i), mask);
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
  using GatedAttention = Signature<gated_attention_call>;
  using Attend = Signature<attend_call>;
  m.impl("gated_attention", &GatedAttention::Of<forward_rule>::run);
  m.impl("gated_attention_backward", &GatedAttention::Of<backward_rule>::run);
  m.impl("attend", &Attend::Of<forward_rule>::run);
  m.impl("attend_backward", &Attend::Of<backward_rule>::run);
  m.impl("gated_attention_saving", &GatedAttention::Of<saving_rule>::run);
  m.impl("attend_saving", &Attend::Of<saving_rule>::run);
}

}  // namespace headkit
