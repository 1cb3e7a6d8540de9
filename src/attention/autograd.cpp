#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "attention/attention_call.h"
#include "attention/saved_pairs.h"
#include "headkit/core/error.h"
#include "operators/recording.h"

namespace headkit {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// `saved_pairs` may be undefined.
void save_call(AutogradContext* ctx, const AttentionCall& call, const at::Tensor& saved_pairs) {
  const DifferentiableTensors tensors = differentiable_tensors(call);
  variable_list saved(tensors.begin(), tensors.end());
  const FixedTensors fixed = fixed_tensors(call);
  saved.insert(saved.end(), fixed.begin(), fixed.end());
  saved.push_back(saved_pairs);
  ctx->save_for_backward(std::move(saved));
  auto& data = ctx->saved_data;
  data["keys_given"] = call.keys_given;
  data["num_heads"] = call.num_heads;
  data["num_kv_heads"] = call.num_kv_heads;
  data["kv_head"] = call.kv_head;
  data["scale"] = call.scale;
  data["skip"] = call.skip;
  data["is_causal"] = call.is_causal;
  data["query_offset"] = call.query_offset;
  data["norm_eps"] = call.norm_eps;
  data["window"] = call.window;
  data["dropout_p"] = call.dropout_p;
  data["dropout_seed"] = call.dropout_seed;
}

AttentionCall saved_call(AutogradContext* ctx, const variable_list& saved) {
  auto& data = ctx->saved_data;
  AttentionCall call;
  call.keys_given = data["keys_given"].toBool();
  call.num_heads = data["num_heads"].toInt();
  call.num_kv_heads = data["num_kv_heads"].toOptional<int64_t>();
  if (!data["kv_head"].isNone()) call.kv_head = data["kv_head"].toIntVector();
  call.scale = data["scale"].toOptional<double>();
  call.skip = data["skip"].toBool();
  call.is_causal = data["is_causal"].toBool();
  call.query_offset = data["query_offset"].toSymInt();
  call.norm_eps = data["norm_eps"].toDouble();
  call.window = data["window"].toOptional<int64_t>();
  call.dropout_p = data["dropout_p"].toDouble();
  call.dropout_seed = data["dropout_seed"].toInt();
  DifferentiableTensors tensors;
  std::copy_n(saved.begin(), kDifferentiable, tensors.begin());
  FixedTensors fixed;
  std::copy_n(saved.begin() + kDifferentiable, kFixed, fixed.begin());
  return with_fixed(with_differentiable(std::move(call), tensors), fixed);
}

class GatedAttention : public torch::autograd::Function<GatedAttention> {
 public:
  // The output and, where the backward has use for it, what the kernels kept.
  static variable_list forward(AutogradContext* ctx, at::TensorList, const AttentionCall& call) {
    ctx->set_materialize_grads(false);
    // Tells the kernel that somebody trains: packed weights may be stale.
    const at::AutoGradMode grad_mode(true);
    const at::AutoDispatchBelowADInplaceOrView below;
    if (!SavedPairs::kept(call)) {
      save_call(ctx, call, {});
      return {dispatch_attention(call)};
    }
    const auto [y, saved] = dispatch_attention_saving(call);
    save_call(ctx, call, saved);
    ctx->mark_non_differentiable({saved});
    return {y, saved};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const AttentionCall call = saved_call(ctx, saved);
    const std::optional<at::Tensor> pairs =
        saved.back().defined() ? std::optional(saved.back()) : std::nullopt;
    const DifferentiableTensors tensors = differentiable_tensors(call);
    GradientMask mask = {};
    size_t input = 0;
    bool any = false;
    for (size_t i = 0; i < kDifferentiable; ++i) {
      if (!tensors[i].defined()) continue;
      mask[i] = grads[0].defined() && ctx->needs_input_grad(input);
      any = any || mask[i];
      ++input;
    }
    variable_list result(input + 1);  // the last for `call`, which has none
    if (!any) return result;
    const std::vector<at::Tensor> found = dispatch_attention_backward(grads[0], call, pairs, mask);
    size_t next = 0;
    input = 0;
    for (size_t i = 0; i < kDifferentiable; ++i) {
      if (!tensors[i].defined()) continue;
      if (mask[i]) result[input] = found[next++];
      ++input;
    }
    return result;
  }
};

class GatedAttentionBackward : public torch::autograd::Function<GatedAttentionBackward> {
 public:
  static variable_list forward(AutogradContext* ctx, at::TensorList, const at::Tensor& grad,
                               const AttentionCall& call, const std::optional<at::Tensor>& saved,
                               const GradientMask& mask) {
    ctx->saved_data["operation"] = std::string(call.operation());
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatch_attention_backward(grad, call, saved, mask);
  }

  static variable_list backward(AutogradContext* ctx, variable_list) {
    throw std::runtime_error(error_message(ctx->saved_data["operation"].toStringRef().c_str(),
                                           "to be differentiated once",
                                           "a backward through its backward"));
  }
};

}  // namespace

at::Tensor attention_autograd(const AttentionCall& call) {
  check_call(call);
  const variable_list tensors = defined_only(differentiable_tensors(call));
  if (records_graph(tensors)) return GatedAttention::apply(at::TensorList(tensors), call)[0];
  const at::AutoDispatchBelowADInplaceOrView below;
  return dispatch_attention(call);
}

SavingResult attention_saving_autograd(const AttentionCall& call) {
  check_call(call);
  const variable_list tensors = defined_only(differentiable_tensors(call));
  if (records_graph(tensors) && SavedPairs::kept(call)) {
    const variable_list results = GatedAttention::apply(at::TensorList(tensors), call);
    return {results[0], results[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return dispatch_attention_saving(call);
}

std::vector<at::Tensor> attention_backward_autograd(const at::Tensor& grad,
                                                    const AttentionCall& call,
                                                    const std::optional<at::Tensor>& saved,
                                                    GradientMask mask) {
  const variable_list tensors = defined_only(differentiable_tensors(call));
  if (records_graph(tensors) || records_graph({grad})) {
    return GatedAttentionBackward::apply(at::TensorList(tensors), grad, call, saved, mask);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return dispatch_attention_backward(grad, call, saved, mask);
}

}  // namespace headkit
