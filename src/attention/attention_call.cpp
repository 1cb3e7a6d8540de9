#include "attention/attention_call.h"

#include <ATen/ATen.h>

#include <cmath>
#include <string>
#include <utility>

#include "headkit/core/error.h"

namespace headkit {
namespace {

at::Tensor value(const std::optional<at::Tensor>& tensor) { return tensor.value_or(at::Tensor()); }

std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

std::vector<int64_t> kv_head_of_each(const AttentionCall& call, int64_t kv_heads) {
  if (call.kv_head) return *call.kv_head;
  std::vector<int64_t> kv_head(call.num_heads);
  for (int64_t h = 0; h < call.num_heads; ++h) kv_head[h] = h / (call.num_heads / kv_heads);
  return kv_head;
}

std::optional<std::vector<int64_t>> to_vector(at::OptionalIntArrayRef list) {
  return list ? std::optional(list->vec()) : std::nullopt;
}

// Throws where `input` sets what the operator does not have.
void check_input(const AttentionInput& input, const AttentionCall& call) {
  if (!call.keys_given) {
    HEADKIT_CHECK(input.query_offset_ == 0, call.operation(),
                  "query_offset 0, as K and V are not given", input.query_offset_);
    return;
  }
  for (const auto& [given, name] : {std::pair(input.kv_.has_value(), "kv"),
                                    std::pair(input.num_kv_heads_.has_value(), "num_kv_heads"),
                                    std::pair(input.k_norm_weight_.has_value(), "k_norm_weight")}) {
    HEADKIT_CHECK(!given, call.operation(),
                  std::string(name) + " to be unset, as K and V are given", name);
  }
}

}  // namespace

AttentionCall gated_attention_call(
    const at::Tensor& x, const at::Tensor& q_weight, const at::Tensor& k_weight,
    const at::Tensor& v_weight, const at::Tensor& o_weight, int64_t num_heads,
    const std::optional<at::Tensor>& q_bias, const std::optional<at::Tensor>& k_bias,
    const std::optional<at::Tensor>& v_bias, const std::optional<at::Tensor>& o_bias,
    std::optional<int64_t> num_kv_heads, const std::optional<at::Tensor>& kv,
    std::optional<double> scale, const std::optional<at::Tensor>& gate, bool skip,
    const std::optional<at::Tensor>& key_padding_mask, bool is_causal,
    const std::optional<at::Tensor>& attn_bias, const std::optional<at::Tensor>& dropped_output,
    const std::optional<at::Tensor>& rotary_cos, const std::optional<at::Tensor>& rotary_sin,
    const std::optional<at::Tensor>& q_norm_weight, const std::optional<at::Tensor>& k_norm_weight,
    std::optional<int64_t> window, double dropout_p, int64_t dropout_seed, double norm_eps,
    at::OptionalIntArrayRef kv_head) {
  AttentionCall call;
  call.x = x;
  call.q_weight = q_weight;
  call.k_weight = k_weight;
  call.v_weight = v_weight;
  call.o_weight = o_weight;
  call.num_heads = num_heads;
  call.q_bias = q_bias;
  call.k_bias = k_bias;
  call.v_bias = v_bias;
  call.o_bias = o_bias;
  call.num_kv_heads = num_kv_heads;
  call.kv_head = to_vector(kv_head);
  call.kv = kv;
  call.scale = scale;
  call.gate = gate;
  call.skip = skip;
  call.key_padding_mask = key_padding_mask;
  call.is_causal = is_causal;
  call.attn_bias = attn_bias;
  call.dropped_output = dropped_output;
  call.rotary_cos = rotary_cos;
  call.rotary_sin = rotary_sin;
  call.q_norm_weight = q_norm_weight;
  call.k_norm_weight = k_norm_weight;
  call.norm_eps = norm_eps;
  call.window = window;
  call.dropout_p = dropout_p;
  call.dropout_seed = dropout_seed;
  return call;
}

AttentionCall attend_call(
    const at::Tensor& x, const at::Tensor& k, const at::Tensor& v, const at::Tensor& q_weight,
    const at::Tensor& o_weight, int64_t num_heads, const std::optional<at::Tensor>& q_bias,
    const std::optional<at::Tensor>& o_bias, at::OptionalIntArrayRef kv_head,
    std::optional<double> scale, const std::optional<at::Tensor>& gate, bool skip,
    const std::optional<at::Tensor>& key_padding_mask, bool is_causal, c10::SymInt query_offset,
    const std::optional<at::Tensor>& attn_bias, const std::optional<at::Tensor>& dropped_output,
    const std::optional<at::Tensor>& rotary_cos, const std::optional<at::Tensor>& rotary_sin,
    const std::optional<at::Tensor>& q_norm_weight, double norm_eps, std::optional<int64_t> window,
    double dropout_p, int64_t dropout_seed) {
  AttentionCall call = gated_attention_call(
      x, q_weight, {}, {}, o_weight, num_heads, q_bias, {}, {}, o_bias, {}, {}, scale, gate, skip,
      key_padding_mask, is_causal, attn_bias, dropped_output, rotary_cos, rotary_sin, q_norm_weight,
      {}, window, dropout_p, dropout_seed, norm_eps, kv_head);
  call.keys_given = true;
  call.k = k;
  call.v = v;
  call.query_offset = std::move(query_offset);
  return call;
}

DifferentiableTensors differentiable_tensors(const AttentionCall& call) {
  return {call.x,
          value(call.kv),
          call.k,
          call.v,
          call.q_weight,
          call.k_weight,
          call.v_weight,
          call.o_weight,
          value(call.q_bias),
          value(call.k_bias),
          value(call.v_bias),
          value(call.o_bias),
          value(call.gate),
          value(call.attn_bias),
          value(call.dropped_output),
          value(call.q_norm_weight),
          value(call.k_norm_weight)};
}

AttentionCall with_differentiable(AttentionCall call, const DifferentiableTensors& tensors) {
  call.x = tensors[kX];
  call.kv = optional(tensors[kKv]);
  call.k = tensors[kK];
  call.v = tensors[kV];
  call.q_weight = tensors[kQWeight];
  call.k_weight = tensors[kKWeight];
  call.v_weight = tensors[kVWeight];
  call.o_weight = tensors[kOWeight];
  call.q_bias = optional(tensors[kQBias]);
  call.k_bias = optional(tensors[kKBias]);
  call.v_bias = optional(tensors[kVBias]);
  call.o_bias = optional(tensors[kOBias]);
  call.gate = optional(tensors[kGate]);
  call.attn_bias = optional(tensors[kAttnBias]);
  call.dropped_output = optional(tensors[kDroppedOutput]);
  call.q_norm_weight = optional(tensors[kQNormWeight]);
  call.k_norm_weight = optional(tensors[kKNormWeight]);
  return call;
}

FixedTensors fixed_tensors(const AttentionCall& call) {
  return {value(call.key_padding_mask), value(call.rotary_cos), value(call.rotary_sin)};
}

AttentionCall with_fixed(AttentionCall call, const FixedTensors& tensors) {
  call.key_padding_mask = optional(tensors[kKeyPaddingMask]);
  call.rotary_cos = optional(tensors[kRotaryCos]);
  call.rotary_sin = optional(tensors[kRotarySin]);
  return call;
}

AttentionCall make_call(const at::Tensor& x, const AttentionWeights& weights, int64_t num_heads,
                        const AttentionInput& input) {
  AttentionCall call;
  call.keys_given = input.keys_ || input.values_;
  check_input(input, call);
  call.x = x;
  call.q_weight = weights.q;
  call.o_weight = weights.o;
  call.num_heads = num_heads;
  call.q_bias = optional(weights.q_bias);
  call.o_bias = optional(weights.o_bias);
  if (call.keys_given) {
    call.k = value(input.keys_);
    call.v = value(input.values_);
  } else {
    call.k_weight = weights.k;
    call.v_weight = weights.v;
    call.k_bias = optional(weights.k_bias);
    call.v_bias = optional(weights.v_bias);
  }
  call.num_kv_heads = input.num_kv_heads_;
  call.kv_head = input.kv_head_;
  call.kv = input.kv_;
  call.scale = input.scale_;
  call.gate = input.gate_;
  call.skip = input.skip_;
  call.key_padding_mask = input.key_padding_mask_;
  call.is_causal = input.is_causal_;
  call.query_offset = input.query_offset_;
  call.attn_bias = input.attn_bias_;
  call.dropped_output = input.dropped_output_;
  call.rotary_cos = input.rotary_cos_;
  call.rotary_sin = input.rotary_sin_;
  call.q_norm_weight = input.q_norm_weight_;
  call.k_norm_weight = input.k_norm_weight_;
  call.norm_eps = input.norm_eps_;
  call.window = input.window_;
  call.dropout_p = input.dropout_p_;
  call.dropout_seed = input.dropout_seed_;
  return call;
}

bool AttentionProblem::own_kv_heads() const {
  if (heads != kv_heads) return false;
  for (int64_t head = 0; head < heads; ++head) {
    if (kv_head[head] != head) return false;
  }
  return true;
}

AttentionProblem make_problem(const AttentionCall& call) {
  check_call(call);
  AttentionProblem problem;
  problem.x = call.x;
  problem.weights = {call.q_weight,      call.k_weight,      call.v_weight,
                     call.o_weight,      value(call.q_bias), value(call.k_bias),
                     value(call.v_bias), value(call.o_bias)};
  problem.kv = value(call.kv);
  problem.k = call.k;
  problem.v = call.v;
  problem.heads = call.num_heads;
  if (call.keys_given) {
    problem.kv_heads = call.k.size(1);
    problem.num_keys = call.k.size(2);
    problem.head_dim = call.k.size(3);
  } else {
    problem.kv_heads = call.num_kv_heads.value_or(call.num_heads);
    problem.num_keys = problem.source().size(1);
    problem.head_dim = problem.kv_heads == 0 ? 0 : call.k_weight.size(0) / problem.kv_heads;
  }
  problem.kv_head = kv_head_of_each(call, problem.kv_heads);
  problem.scale = call.scale.value_or(
      problem.head_dim == 0 ? 1.0 : 1.0 / std::sqrt(static_cast<double>(problem.head_dim)));
  problem.gate = value(call.gate);
  if (problem.gate.defined() && problem.gate.is_cpu()) {
    HEADKIT_CHECK(problem.gate.isfinite().all().item<bool>(), call.operation(), "finite gates",
                  "NaN or infinity");
  }
  problem.key_padding_mask = value(call.key_padding_mask);
  if (call.attn_bias) {
    problem.attn_bias = *call.attn_bias;
    while (problem.attn_bias.dim() < 4) problem.attn_bias = problem.attn_bias.unsqueeze(0);
  }
  problem.dropped_output = value(call.dropped_output);
  problem.q_transform = {value(call.q_norm_weight), call.norm_eps, value(call.rotary_cos),
                         value(call.rotary_sin)};
  problem.k_transform = {value(call.k_norm_weight), call.norm_eps, value(call.rotary_cos),
                         value(call.rotary_sin)};
  problem.query_offset = call.query_offset.guard_int(__FILE__, __LINE__);
  problem.window = call.window;
  problem.dropout_p = call.dropout_p;
  problem.dropout_seed = call.dropout_seed;
  problem.skip = call.skip;
  problem.is_causal = call.is_causal;
  return problem;
}

}  // namespace headkit
