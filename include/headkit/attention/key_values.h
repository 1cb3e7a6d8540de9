#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "headkit/attention/gated_attention.h"

namespace headkit {

/// Projected keys and values, [B, Hkv, S, dh], as caches hold them: one entry for each KV head, not
/// repeated for the query heads that share it.
struct KeyValues {
  at::Tensor k, v;
};

/// Optional inputs of `project_kv`; unset members mean a plain projection.
struct ProjectKvOptions {
  std::optional<at::Tensor> gate = {};  ///< [Hkv] or [B, Hkv], floating: 0 = closed, else open
  std::optional<at::Tensor> rotary_cos = {};     ///< [B or 1, S, dr]; see AttentionInput
  std::optional<at::Tensor> rotary_sin = {};     ///< as rotary_cos
  std::optional<at::Tensor> k_norm_weight = {};  ///< [dh]; see AttentionInput
  double norm_eps = 1e-6;
};

/// The first half of `gated_attention`: keys and values of a source, normed and rotated, ready for
/// a cache. A closed KV head is not computed: its keys and values are 0.
///
/// Args: kv [B, S, Dk], float32, float64, bfloat16 or float16; all sizes may be 0. Of `weights` k
/// and v [Hkv*dh, Dk] with their biases are read. Returns two tensors of the dtype of kv.
///
/// Differentiable once in kv, weights, biases and k_norm_weight; not in the gate, which only says
/// what runs. Throws std::invalid_argument on shapes, dtypes or devices that do not fit.
///
/// The same call is `torch.ops.headkit.project_kv` in Python.
KeyValues project_kv(const at::Tensor& kv, const AttentionWeights& weights, int64_t num_kv_heads,
                     const ProjectKvOptions& options = {});

/// The second half of `gated_attention`: attends to keys and values that are given.
///
///     gated_attention(x, weights, H, input) == attend(x, project_kv(x, weights, H), weights, H,
///                                                     input)
///
/// Args: x [B, T, D]; `keys_values` of the dtype and device of x, [B, Hkv, S, dh], any strides; of
/// `weights` q and o with their biases are read. Query i stands at key position
/// input.query_offset + i for is_causal and window. `input` must not set kv, num_kv_heads and the
/// norm of keys. Returns [B, T, D], dtype of x.
///
/// A closed gate is work not done, as in `gated_attention`. Differentiable once in x, k, v,
/// weights, biases, gate, attn_bias, dropped_output and q_norm_weight. Keys and values are not
/// copied while all heads are open. Throws as `gated_attention`.
///
/// The same call is `torch.ops.headkit.attend` in Python.
at::Tensor attend(const at::Tensor& x, const KeyValues& keys_values,
                  const AttentionWeights& weights, int64_t num_heads,
                  const AttentionInput& input = {});

}  // namespace headkit
