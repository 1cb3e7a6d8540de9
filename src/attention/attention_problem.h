#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attention/head_transform.h"
#include "headkit/attention/gated_attention.h"

namespace headkit {

/// One call of `gated_attention` or `attend` after its checks: what every backend may rely on.
/// Keys and values are projected from kv or x, or given.
struct AttentionProblem {
  at::Tensor x;                  // [B, T, D]
  AttentionWeights weights;      // dtype and device of x; those of K and V undefined where given
  at::Tensor kv;                 // undefined or [B, S, Dk]
  at::Tensor k, v;               // [B, Hkv, S, dh], or undefined
  int64_t heads = 0;             // H; may be 0
  int64_t kv_heads = 0;          // Hkv
  int64_t head_dim = 0;          // dh
  int64_t num_keys = 0;          // S
  std::vector<int64_t> kv_head;  // [H]: the KV head of each query head
  double scale = 1.0;
  at::Tensor gate;              // undefined, [H], [B, H] or [B, T, H]
  at::Tensor key_padding_mask;  // undefined or bool [B, S]
  at::Tensor attn_bias;         // undefined or four-dimensional, broadcastable to [B, H, T, S]
  at::Tensor dropped_output;    // undefined or [H, D]
  HeadTransform q_transform, k_transform;
  int64_t query_offset = 0;  // query i stands at key position query_offset + i
  std::optional<int64_t> window;
  double dropout_p = 0.0;
  int64_t dropout_seed = 0;
  bool skip = true;
  bool is_causal = false;

  bool keys_given() const { return k.defined(); }
  /// What K and V are projected from, unless they are given.
  const at::Tensor& source() const { return kv.defined() ? kv : x; }
  /// Whether query head h has KV head h for itself.
  bool own_kv_heads() const;
};

/// Forward of one backend, [B, T, D], contiguous. None of them records a graph of its own, but for
/// the reference where autograd is on. GradMode is on while a caller records a graph, so that
/// packed weights can be refreshed in training.
at::Tensor attention_reference(const AttentionProblem& problem);  // reference.cpp
at::Tensor attention_composite(const AttentionProblem& problem);  // composite.cpp: backend "aten"
at::Tensor attention_cpu(const AttentionProblem& problem);        // launch.cpp: backend "cpu"
/// The same for few queries and given keys.
at::Tensor attention_cpu_decode(const AttentionProblem& problem);  // decode_launch.cpp

/// The same on backend "cpu" for x in float32, with what the backward wants in `saved`
/// (saved_pairs.h); and that alone, for any problem of backend "cpu".
at::Tensor attention_cpu_saving(const AttentionProblem& problem, const at::Tensor& saved);
void save_pairs(const AttentionProblem& problem, const at::Tensor& saved);

/// Empty if the CPU kernels can run this problem, else what they lack.
std::string attention_cpu_refusal(const AttentionProblem& problem);  // launch.cpp

/// As `choose_backend` of operators/backend.h.
BackendChoice choose_backend(const AttentionProblem& problem);  // gated_attention.cpp

}  // namespace headkit
