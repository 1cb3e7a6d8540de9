#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "attention/attention_problem.h"

namespace headkit {

/// The arguments of `headkit::gated_attention`, in the order of its schema (operator.cpp).
struct AttentionCall {
  at::Tensor x, q_weight, k_weight, v_weight, o_weight;
  int64_t num_heads = 0;
  std::optional<at::Tensor> q_bias, k_bias, v_bias, o_bias;
  std::optional<int64_t> num_kv_heads;
  std::optional<at::Tensor> kv;
  std::optional<double> scale;
  std::optional<at::Tensor> gate;
  bool skip = true;
  std::optional<at::Tensor> key_padding_mask;
  bool is_causal = false;
  std::optional<at::Tensor> attn_bias, dropped_output;
  std::optional<at::Tensor> rotary_cos, rotary_sin, q_norm_weight, k_norm_weight;
  std::optional<int64_t> window;
  double dropout_p = 0.0;
  int64_t dropout_seed = 0;
};

/// The differentiable arguments: the order of gradients and of the masks that ask for them.
enum Differentiable : size_t {
  kX,
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
  kDifferentiable
};
using GradientMask = std::array<bool, kDifferentiable>;
using DifferentiableTensors = std::array<at::Tensor, kDifferentiable>;

/// The differentiable arguments of a call; an absent one is undefined.
DifferentiableTensors differentiable_tensors(const AttentionCall& call);
/// The same call with other differentiable arguments.
AttentionCall with_differentiable(AttentionCall call, const DifferentiableTensors& tensors);

/// The call of `headkit::gated_attention`'s C++ face.
AttentionCall make_call(const at::Tensor& x, const AttentionWeights& weights, int64_t num_heads,
                        const AttentionInput& input);

/// Throws std::invalid_argument naming the first argument that does not fit. Reads sizes, dtypes
/// and devices only, so that it serves tensors without data and symbolic sizes.
void check_call(const AttentionCall& call);

/// Checks a call, its gate's values too where they lie on the CPU, and settles its defaults.
AttentionProblem make_problem(const AttentionCall& call);

/// Calls the operator through the dispatcher.
at::Tensor dispatch_attention(const AttentionCall& call);
/// The gradients that `mask` asks for, in order.
std::vector<at::Tensor> dispatch_attention_backward(const at::Tensor& grad,
                                                    const AttentionCall& call, GradientMask mask);

/// Kernels of the Autograd key (autograd.cpp).
at::Tensor attention_autograd(const AttentionCall& call);
std::vector<at::Tensor> attention_backward_autograd(const at::Tensor& grad,
                                                    const AttentionCall& call, GradientMask mask);

}  // namespace headkit
