#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>
#include <c10/util/OptionalArrayRef.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "attention/attention_problem.h"

namespace headkit {

/// The arguments of `headkit::gated_attention`, or those of `headkit::attend`, in which K and V are
/// given and what would project them is absent. Schemas: operator.cpp.
struct AttentionCall {
  bool keys_given = false;  // attend
  at::Tensor x, q_weight, k_weight, v_weight, o_weight;
  at::Tensor k, v;
  int64_t num_heads = 0;
  std::optional<at::Tensor> q_bias, k_bias, v_bias, o_bias;
  std::optional<int64_t> num_kv_heads;
  std::optional<std::vector<int64_t>> kv_head;
  std::optional<at::Tensor> kv;
  std::optional<double> scale;
  std::optional<at::Tensor> gate;
  bool skip = true;
  std::optional<at::Tensor> key_padding_mask;
  bool is_causal = false;
  c10::SymInt query_offset = 0;  // symbolic: a step of decoding must not recompile a graph
  std::optional<at::Tensor> attn_bias, dropped_output;
  std::optional<at::Tensor> rotary_cos, rotary_sin, q_norm_weight, k_norm_weight;
  double norm_eps = 1e-6;
  std::optional<int64_t> window;
  double dropout_p = 0.0;
  int64_t dropout_seed = 0;

  /// The operator's name.
  const char* operation() const { return keys_given ? "attend" : "gated_attention"; }
};

/// The call of the arguments of a schema, in its order (operator.cpp).
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
    at::OptionalIntArrayRef kv_head);
AttentionCall attend_call(
    const at::Tensor& x, const at::Tensor& k, const at::Tensor& v, const at::Tensor& q_weight,
    const at::Tensor& o_weight, int64_t num_heads, const std::optional<at::Tensor>& q_bias,
    const std::optional<at::Tensor>& o_bias, at::OptionalIntArrayRef kv_head,
    std::optional<double> scale, const std::optional<at::Tensor>& gate, bool skip,
    const std::optional<at::Tensor>& key_padding_mask, bool is_causal, c10::SymInt query_offset,
    const std::optional<at::Tensor>& attn_bias, const std::optional<at::Tensor>& dropped_output,
    const std::optional<at::Tensor>& rotary_cos, const std::optional<at::Tensor>& rotary_sin,
    const std::optional<at::Tensor>& q_norm_weight, double norm_eps, std::optional<int64_t> window,
    double dropout_p, int64_t dropout_seed);

/// The differentiable arguments of both operators: the order of gradients and of the masks that ask
/// for them.
enum Differentiable : size_t {
  kX,
  kKv,
  kK,
  kV,
  kQWeight,
  kKWeight,
  kVWeight,
  kOWeight,
  kQBias,
  kKBias,
  kVBias,
  kOBias,
  kGate,
  kAttnBias,
  kDroppedOutput,
  kQNormWeight,
  kKNormWeight,
  kDifferentiable
};
using GradientMask = std::array<bool, kDifferentiable>;
using DifferentiableTensors = std::array<at::Tensor, kDifferentiable>;

/// The differentiable arguments of a call; an absent one is undefined.
DifferentiableTensors differentiable_tensors(const AttentionCall& call);
/// The same call with other differentiable arguments.
AttentionCall with_differentiable(AttentionCall call, const DifferentiableTensors& tensors);

/// The other tensors.
enum Fixed : size_t { kKeyPaddingMask, kRotaryCos, kRotarySin, kFixed };
using FixedTensors = std::array<at::Tensor, kFixed>;
FixedTensors fixed_tensors(const AttentionCall& call);
AttentionCall with_fixed(AttentionCall call, const FixedTensors& tensors);

/// The call of the C++ face: of `attend` if `input` gives K and V. Throws std::invalid_argument if
/// `input` sets what the operator does not have.
AttentionCall make_call(const at::Tensor& x, const AttentionWeights& weights, int64_t num_heads,
                        const AttentionInput& input);

/// Throws std::invalid_argument naming the first argument that does not fit. Reads sizes, dtypes
/// and devices only, so that it serves tensors without data and symbolic sizes.
void check_call(const AttentionCall& call);  // attention_check.cpp

/// Checks a call, its gate's values too where they lie on the CPU, and settles its defaults.
AttentionProblem make_problem(const AttentionCall& call);

/// Calls the operator through the dispatcher.
at::Tensor dispatch_attention(const AttentionCall& call);
/// Its output, and what its backward wants: for calls whose pairs are kept (saved_pairs.h).
using SavingResult = std::tuple<at::Tensor, at::Tensor>;
SavingResult dispatch_attention_saving(const AttentionCall& call);
/// The gradients that `mask` asks for, in order. Without what the forward saved, the backward
/// computes it again.
std::vector<at::Tensor> dispatch_attention_backward(const at::Tensor& grad,
                                                    const AttentionCall& call,
                                                    const std::optional<at::Tensor>& saved,
                                                    GradientMask mask);

/// Kernels of the Autograd key (autograd.cpp).
at::Tensor attention_autograd(const AttentionCall& call);
SavingResult attention_saving_autograd(const AttentionCall& call);
std::vector<at::Tensor> attention_backward_autograd(const at::Tensor& grad,
                                                    const AttentionCall& call,
                                                    const std::optional<at::Tensor>& saved,
                                                    GradientMask mask);

}  // namespace headkit
