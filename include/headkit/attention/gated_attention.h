#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "headkit/core/backend.h"

namespace headkit {

/// Weights of one attention layer, y = x W^T + b. Head h owns rows h*dh .. (h+1)*dh-1 of q and its
/// bias, and the same columns of o; KV head j the same rows of k, v and their biases. Any bias may
/// be undefined.
struct AttentionWeights {
  at::Tensor q;               ///< [H*dh, D]
  at::Tensor k, v;            ///< [Hkv*dh, Dk]; Hkv = H and Dk = D unless the input says otherwise
  at::Tensor o;               ///< [D, H*dh]
  at::Tensor q_bias;          ///< [H*dh]
  at::Tensor k_bias, v_bias;  ///< [Hkv*dh]
  at::Tensor o_bias;          ///< [D]
};

/// Optional inputs of one call; unset members mean plain dense attention.
///
///     auto y = gated_attention(x, weights, 12, AttentionInput().gate(g).key_padding_mask(mask));
class AttentionInput {
 public:
  /// [H], [B, H] or [B, T, H], float32 (float64 when x is float64). 0 = skipped, another value
  /// scales the head's output. A [B, T, H] gate skips a head of a sample only where all its tokens
  /// are closed.
  AttentionInput& gate(at::Tensor value);
  /// false = mask mode: closed heads are computed and multiplied by 0, so that their gates receive
  /// gradients. Default true: the gate of a skipped pair gets exactly 0.
  AttentionInput& skip(bool value);
  /// Bool [B, S]; true = attend. A query without any admissible key gets attention output 0.
  AttentionInput& key_padding_mask(at::Tensor value);
  /// Query i sees keys j <= i + query_offset only.
  AttentionInput& is_causal(bool value);
  /// Query i sees keys j with |i + query_offset - j| < value only; at least 1. With is_causal the
  /// usual sliding window.
  AttentionInput& window(int64_t value);
  /// Added to the scaled scores; broadcastable to [B, H, T, S], dtype of x.
  AttentionInput& attn_bias(at::Tensor value);
  /// [H, D], dtype of x: what a closed head adds instead of nothing; a gate g gives
  /// g * output + (1 - g) * dropped_output.
  AttentionInput& dropped_output(at::Tensor value);
  /// Factor on the scores; default 1 / sqrt(dh).
  AttentionInput& scale(double value);
  /// Dropout on the attention probabilities with an explicit seed; default 0.
  AttentionInput& dropout(double probability, int64_t seed);

  /// Where keys and values come from, [B, S, Dk], dtype of x: cross attention. Default x.
  AttentionInput& kv(at::Tensor value);
  /// Hkv: how many heads K and V have; default H. Query head h reads KV head h / (H / Hkv). A KV
  /// head runs for a sample when any of its query heads does.
  AttentionInput& num_kv_heads(int64_t value);
  /// The KV head of each query head instead, H entries in [0, Hkv); H need not be a multiple of
  /// Hkv.
  AttentionInput& kv_head(std::vector<int64_t> value);
  /// Rotary embedding of queries and keys, both [B or 1, T, dr], dtype of x, dr <= dh even: the
  /// first dr dimensions turn, i together with i + dr / 2. For self-attention. In `attend` of the
  /// queries only. Source: Su et al. 2021.
  AttentionInput& rotary(at::Tensor cosines, at::Tensor sines);
  /// RMS norm of queries over dh, before the rotary embedding, with this weight [dh], dtype of x;
  /// computed in float32 (float64 for float64).
  AttentionInput& q_norm(at::Tensor weight);
  /// The same for keys.
  AttentionInput& k_norm(at::Tensor weight);
  /// What both norms add to the mean square; default 1e-6.
  AttentionInput& norm_eps(double value);

  /// Keys and values that are given instead of projected, [B, Hkv, S, dh]: see `attend`.
  AttentionInput& keys_values(at::Tensor k, at::Tensor v);
  /// Position of the first query among given keys; default 0.
  AttentionInput& query_offset(int64_t value);

  std::optional<at::Tensor> gate_, key_padding_mask_, attn_bias_, dropped_output_;
  std::optional<at::Tensor> kv_, keys_, values_;
  std::optional<at::Tensor> rotary_cos_, rotary_sin_, q_norm_weight_, k_norm_weight_;
  std::optional<int64_t> num_kv_heads_, window_;
  std::optional<std::vector<int64_t>> kv_head_;
  std::optional<double> scale_;
  double norm_eps_ = 1e-6;
  int64_t query_offset_ = 0;
  double dropout_p_ = 0.0;
  int64_t dropout_seed_ = 0;
  bool skip_ = true;
  bool is_causal_ = false;
};

/// Multi-head attention in which a closed gate is work not done: no Q, K, V, core or output
/// projection for that head of that sample, forward and backward.
///
///     y[b, t] = o_bias + sum_h g[b, h] * a_h[b, t] W_O^h^T + (1 - g[b, h]) * dropped_output[h]
///
/// Args: x [B, T, D], float32, float64, bfloat16 or float16; all sizes may be 0. `num_heads` H >=
/// 0, dh = q.size(0) / H. Returns [B, T, D], dtype of x.
///
/// Differentiable once in x, kv, weights, biases, gate, attn_bias, dropped_output and the norms'
/// weights; the backward does no work for closed pairs. In float32 on backend "cpu" a forward that
/// records a graph keeps what the backward wants: of an open pair Q and the context, 8 T (dh + 1)
/// bytes with T rounded up to 48, of an open KV head K and V, 8 S dh bytes; a norm adds 4 T dh.
/// Elsewhere the backward computes that again. Address space, not memory, is taken for closed
/// pairs. Under vmap the mapped dimension joins B; torch refuses torch.func.grad, as for every
/// backward in C++.
///
/// Throws std::invalid_argument on shapes, dtypes or devices that do not fit and, on CPU, on a NaN
/// or infinite gate; std::runtime_error if the environment variable HEADKIT_BACKEND names a backend
/// that cannot run the call.
///
/// The same call is `torch.ops.headkit.gated_attention` in Python.
///
/// Source: Michel, Levy, Neubig 2019 (head gates); Vaswani et al. 2017; Ainslie et al. 2023
/// (grouped queries).
at::Tensor gated_attention(const at::Tensor& x, const AttentionWeights& weights, int64_t num_heads,
                           const AttentionInput& input = {});

/// The backend that `gated_attention` takes for such a call.
BackendChoice attention_backend(const at::Tensor& x, const AttentionWeights& weights,
                                int64_t num_heads, const AttentionInput& input = {});

}  // namespace headkit
