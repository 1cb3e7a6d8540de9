#include "attention/attention_call.h"

#include <ATen/ATen.h>

#include <cmath>
#include <string>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr const char* kOperator = "gated_attention";

at::Tensor value(const std::optional<at::Tensor>& tensor) { return tensor.value_or(at::Tensor()); }

std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

bool equal(const c10::SymInt& a, const c10::SymInt& b) {
  return a.sym_eq(b).expect_true(__FILE__, __LINE__);
}

bool has_shape(const at::Tensor& tensor, c10::SymIntArrayRef shape) {
  if (tensor.dim() != static_cast<int64_t>(shape.size())) return false;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (!equal(tensor.sym_size(d), shape[d])) return false;
  }
  return true;
}

bool broadcasts_to(const at::Tensor& tensor, c10::SymIntArrayRef shape) {
  const int64_t missing = static_cast<int64_t>(shape.size()) - tensor.dim();
  if (missing < 0) return false;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    const c10::SymInt size = tensor.sym_size(d);
    const c10::SymBool fits = size.sym_eq(1).sym_or(size.sym_eq(shape[d + missing]));
    if (!fits.expect_true(__FILE__, __LINE__)) return false;
  }
  return true;
}

void check_like_x(const at::Tensor& tensor, const at::Tensor& x, const std::string& name) {
  HEADKIT_CHECK(tensor.device() == x.device(), kOperator,
                name + " on the device of x (" + x.device().str() + ")", "device ",
                tensor.device());
  HEADKIT_CHECK(tensor.layout() == at::kStrided, kOperator, name + " of strided layout", "layout ",
                tensor.layout());
}

void check_argument(const at::Tensor& tensor, const at::Tensor& x, const std::string& name,
                    const std::string& letters, c10::SymIntArrayRef shape) {
  HEADKIT_CHECK(has_shape(tensor, shape), kOperator, name + " of shape " + letters, "shape ",
                tensor.sym_sizes(), " with x of shape ", x.sym_sizes());
  HEADKIT_CHECK(tensor.scalar_type() == x.scalar_type(), kOperator,
                name + " of the dtype of x (" + c10::toString(x.scalar_type()) + ")", "dtype ",
                tensor.scalar_type());
  check_like_x(tensor, x, name);
}

void check_gate(const at::Tensor& gate, const at::Tensor& x, const c10::SymInt& heads) {
  const c10::SymInt batch = x.sym_size(0), length = x.sym_size(1);
  const bool fits = gate.dim() == 1   ? has_shape(gate, {heads})
                    : gate.dim() == 2 ? has_shape(gate, {batch, heads})
                                      : has_shape(gate, {batch, length, heads});
  HEADKIT_CHECK(fits, kOperator, "gate of shape [H], [B, H] or [B, T, H]", "shape ",
                gate.sym_sizes(), " with x of shape ", x.sym_sizes(), " and H = ", heads);
  const bool double_pair = gate.scalar_type() == at::kDouble && x.scalar_type() == at::kDouble;
  HEADKIT_CHECK(gate.scalar_type() == at::kFloat || double_pair, kOperator,
                "gate of dtype Float (or Double when x is Double)", "dtype ", gate.scalar_type(),
                " with x of dtype ", x.scalar_type());
  check_like_x(gate, x, "gate");
}

void check_unsupported(const AttentionCall& call) {
  HEADKIT_CHECK(call.num_kv_heads.value_or(call.num_heads) == call.num_heads, kOperator,
                "num_kv_heads equal to num_heads (grouped-query attention has no backend yet)",
                *call.num_kv_heads, " with num_heads = ", call.num_heads);
  const auto refuse = [](const std::optional<at::Tensor>& tensor, const std::string& name) {
    HEADKIT_CHECK(!tensor, kOperator, name + " to be unset (no backend has it yet)", "shape ",
                  tensor->sym_sizes());
  };
  refuse(call.kv, "kv");
  refuse(call.rotary_cos, "rotary_cos");
  refuse(call.rotary_sin, "rotary_sin");
  refuse(call.q_norm_weight, "q_norm_weight");
  refuse(call.k_norm_weight, "k_norm_weight");
  HEADKIT_CHECK(!call.window, kOperator, "window to be unset (no backend has it yet)",
                *call.window);
}

}  // namespace

DifferentiableTensors differentiable_tensors(const AttentionCall& call) {
  return {call.x,
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
          value(call.dropped_output)};
}

AttentionCall with_differentiable(AttentionCall call, const DifferentiableTensors& tensors) {
  call.x = tensors[kX];
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
  return call;
}

AttentionCall make_call(const at::Tensor& x, const AttentionWeights& weights, int64_t num_heads,
                        const AttentionInput& input) {
  AttentionCall call;
  call.x = x;
  call.q_weight = weights.q;
  call.k_weight = weights.k;
  call.v_weight = weights.v;
  call.o_weight = weights.o;
  call.num_heads = num_heads;
  call.q_bias = optional(weights.q_bias);
  call.k_bias = optional(weights.k_bias);
  call.v_bias = optional(weights.v_bias);
  call.o_bias = optional(weights.o_bias);
  call.scale = input.scale_;
  call.gate = input.gate_;
  call.skip = input.skip_;
  call.key_padding_mask = input.key_padding_mask_;
  call.is_causal = input.is_causal_;
  call.attn_bias = input.attn_bias_;
  call.dropped_output = input.dropped_output_;
  call.dropout_p = input.dropout_p_;
  call.dropout_seed = input.dropout_seed_;
  return call;
}

void check_call(const AttentionCall& call) {
  const at::Tensor& x = call.x;
  HEADKIT_CHECK(x.defined() && x.dim() == 3, kOperator, "x of shape [B, T, D]", "shape ",
                x.defined() ? x.sym_sizes() : c10::SymIntArrayRef());
  const auto dtype = x.scalar_type();
  HEADKIT_CHECK(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      kOperator, "x of dtype Float, Double, BFloat16 or Half", "dtype ", dtype);
  check_like_x(x, x, "x");
  HEADKIT_CHECK(call.num_heads >= 0, kOperator, "num_heads >= 0", call.num_heads);
  check_unsupported(call);

  const c10::SymInt batch = x.sym_size(0), length = x.sym_size(1), width = x.sym_size(2);
  const c10::SymInt heads = call.num_heads;
  const at::Tensor weights[] = {call.q_weight, call.k_weight, call.v_weight, call.o_weight};
  const char* names[] = {"q", "k", "v", "o"};
  for (int i = 0; i < 4; ++i) {
    HEADKIT_CHECK(weights[i].defined(), kOperator, std::string(names[i]) + "_weight", "none");
  }
  HEADKIT_CHECK(call.q_weight.dim() == 2, kOperator, "q_weight of shape [H * dh, D]", "shape ",
                call.q_weight.sym_sizes());
  const c10::SymInt rows = call.q_weight.sym_size(0);
  HEADKIT_CHECK(call.num_heads == 0 ? equal(rows, 0) : equal(rows % heads, 0), kOperator,
                "q_weight of shape [H * dh, D]", "shape ", call.q_weight.sym_sizes(),
                " with H = ", heads);
  for (int i = 0; i < 3; ++i) {
    check_argument(weights[i], x, std::string(names[i]) + "_weight", "[H * dh, D]", {rows, width});
  }
  check_argument(call.o_weight, x, "o_weight", "[D, H * dh]", {width, rows});
  const std::optional<at::Tensor>* biases[] = {&call.q_bias, &call.k_bias, &call.v_bias,
                                               &call.o_bias};
  for (int i = 0; i < 4; ++i) {
    if (*biases[i]) {
      check_argument(**biases[i], x, std::string(names[i]) + "_bias", i < 3 ? "[H * dh]" : "[D]",
                     {i < 3 ? rows : width});
    }
  }

  if (call.gate) check_gate(*call.gate, x, heads);
  if (const auto& mask = call.key_padding_mask) {
    HEADKIT_CHECK(mask->scalar_type() == at::kBool && has_shape(*mask, {batch, length}), kOperator,
                  "key_padding_mask (true = attend) of shape [B, T] and dtype Bool", "shape ",
                  mask->sym_sizes(), " and dtype ", mask->scalar_type(), " with x of shape ",
                  x.sym_sizes());
    check_like_x(*mask, x, "key_padding_mask");
  }
  if (const auto& bias = call.attn_bias) {
    HEADKIT_CHECK(broadcasts_to(*bias, {batch, heads, length, length}), kOperator,
                  "attn_bias broadcastable to [B, H, T, T]", "shape ", bias->sym_sizes(),
                  " with x of shape ", x.sym_sizes(), " and H = ", heads);
    HEADKIT_CHECK(bias->scalar_type() == dtype, kOperator, "attn_bias of the dtype of x", "dtype ",
                  bias->scalar_type(), " with x of dtype ", dtype);
    check_like_x(*bias, x, "attn_bias");
  }
  if (call.dropped_output) {
    check_argument(*call.dropped_output, x, "dropped_output", "[H, D]", {heads, width});
  }
  HEADKIT_CHECK(!call.scale || std::isfinite(*call.scale), kOperator, "a finite scale",
                *call.scale);
  HEADKIT_CHECK(call.dropout_p >= 0.0 && call.dropout_p < 1.0, kOperator, "dropout_p in [0, 1)",
                call.dropout_p);
}

AttentionProblem make_problem(const AttentionCall& call) {
  check_call(call);
  AttentionProblem problem;
  problem.x = call.x;
  problem.weights = {call.q_weight,      call.k_weight,      call.v_weight,
                     call.o_weight,      value(call.q_bias), value(call.k_bias),
                     value(call.v_bias), value(call.o_bias)};
  problem.heads = call.num_heads;
  problem.head_dim = call.num_heads == 0 ? 0 : call.q_weight.size(0) / call.num_heads;
  problem.scale = call.scale.value_or(
      problem.head_dim == 0 ? 1.0 : 1.0 / std::sqrt(static_cast<double>(problem.head_dim)));
  problem.gate = value(call.gate);
  if (problem.gate.defined() && problem.gate.is_cpu()) {
    HEADKIT_CHECK(problem.gate.isfinite().all().item<bool>(), kOperator, "finite gates",
                  "NaN or infinity");
  }
  problem.key_padding_mask = value(call.key_padding_mask);
  if (call.attn_bias) {
    problem.attn_bias = *call.attn_bias;
    while (problem.attn_bias.dim() < 4) problem.attn_bias = problem.attn_bias.unsqueeze(0);
  }
  problem.dropped_output = value(call.dropped_output);
  problem.dropout_p = call.dropout_p;
  problem.dropout_seed = call.dropout_seed;
  problem.skip = call.skip;
  problem.is_causal = call.is_causal;
  return problem;
}

}  // namespace headkit
