#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <utility>

#include "feed_forward/feed_forward_call.h"
#include "headkit/core/error.h"
#include "operators/recording.h"

namespace headkit {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// `kept` may be undefined.
void save_call(AutogradContext* ctx, const FeedForwardCall& call, const at::Tensor& kept) {
  const FeedForwardTensors tensors = differentiable_tensors(call);
  variable_list saved(tensors.begin(), tensors.end());
  saved.push_back(call.prefix.value_or(at::Tensor()));
  saved.push_back(kept);
  ctx->save_for_backward(std::move(saved));
  ctx->saved_data["activation"] = call.activation;
  ctx->saved_data["block_size"] = call.block_size;
  ctx->saved_data["skip"] = call.skip;
}

FeedForwardCall saved_call(AutogradContext* ctx, const variable_list& saved) {
  FeedForwardCall call;
  call.activation = ctx->saved_data["activation"].toStringRef();
  call.block_size = ctx->saved_data["block_size"].toInt();
  call.skip = ctx->saved_data["skip"].toBool();
  const at::Tensor& prefix = saved[kFeedForwardArguments];
  if (prefix.defined()) call.prefix = prefix;
  FeedForwardTensors tensors;
  std::copy_n(saved.begin(), kFeedForwardArguments, tensors.begin());
  return with_differentiable(std::move(call), tensors);
}

class GatedFeedForward : public torch::autograd::Function<GatedFeedForward> {
 public:
  // The output and, where the backward has use for it, what the kernels kept.
  static variable_list forward(AutogradContext* ctx, at::TensorList, const FeedForwardCall& call) {
    ctx->set_materialize_grads(false);
    // Tells the kernel that somebody trains: packed weights may be stale.
    const at::AutoGradMode grad_mode(true);
    const at::AutoDispatchBelowADInplaceOrView below;
    if (!keeps_hidden(call)) {
      save_call(ctx, call, {});
      return {dispatch_feed_forward(call)};
    }
    const auto [y, kept] = dispatch_feed_forward_keeping(call);
    save_call(ctx, call, kept);
    ctx->mark_non_differentiable({kept});
    return {y, kept};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const FeedForwardCall call = saved_call(ctx, saved);
    const std::optional<at::Tensor> kept =
        saved.back().defined() ? std::optional(saved.back()) : std::nullopt;
    const FeedForwardTensors tensors = differentiable_tensors(call);
    FeedForwardMask mask = {};
    size_t input = 0;
    bool any = false;
    for (size_t i = 0; i < kFeedForwardArguments; ++i) {
      if (!tensors[i].defined()) continue;
      mask[i] = grads[0].defined() && ctx->needs_input_grad(input);
      any = any || mask[i];
      ++input;
    }
    variable_list result(input + 1);  // the last for `call`, which has none
    if (!any) return result;
    const std::vector<at::Tensor> found =
        dispatch_feed_forward_backward(grads[0], call, kept, mask);
    size_t next = 0;
    input = 0;
    for (size_t i = 0; i < kFeedForwardArguments; ++i) {
      if (!tensors[i].defined()) continue;
      if (mask[i]) result[input] = found[next++];
      ++input;
    }
    return result;
  }
};

class GatedFeedForwardBackward : public torch::autograd::Function<GatedFeedForwardBackward> {
 public:
  static variable_list forward(AutogradContext* ctx, at::TensorList, const at::Tensor& grad,
                               const FeedForwardCall& call, const std::optional<at::Tensor>& kept,
                               const FeedForwardMask& mask) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatch_feed_forward_backward(grad, call, kept, mask);
  }

  static variable_list backward(AutogradContext* ctx, variable_list) {
    throw std::runtime_error(error_message(FeedForwardCall::kOperation, "to be differentiated once",
                                           "a backward through its backward"));
  }
};

}  // namespace

at::Tensor feed_forward_autograd(const FeedForwardCall& call) {
  check_call(call);
  const variable_list tensors = defined_only(differentiable_tensors(call));
  if (records_graph(tensors)) return GatedFeedForward::apply(at::TensorList(tensors), call)[0];
  const at::AutoDispatchBelowADInplaceOrView below;
  return dispatch_feed_forward(call);
}

KeepingResult feed_forward_keeping_autograd(const FeedForwardCall& call) {
  check_call(call);
  const variable_list tensors = defined_only(differentiable_tensors(call));
  if (records_graph(tensors) && keeps_hidden(call)) {
    const variable_list results = GatedFeedForward::apply(at::TensorList(tensors), call);
    return {results[0], results[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return dispatch_feed_forward_keeping(call);
}

std::vector<at::Tensor> feed_forward_backward_autograd(const at::Tensor& grad,
                                                       const FeedForwardCall& call,
                                                       const std::optional<at::Tensor>& kept,
                                                       FeedForwardMask mask) {
  const variable_list tensors = defined_only(differentiable_tensors(call));
  if (records_graph(tensors) || records_graph({grad})) {
    return GatedFeedForwardBackward::apply(at::TensorList(tensors), grad, call, kept, mask);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return dispatch_feed_forward_backward(grad, call, kept, mask);
}

}  // namespace headkit
