#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <utility>

#include "attention/attention_problem.h"
#include "attention/head_transform.h"
#include "headkit/plan/work_list.h"

namespace headkit {

/// Keys and values to be projected from one source: `project_kv` after its checks, and the first
/// half of `gated_attention`.
struct KvProblem {
  at::Tensor source;                              // [B, S, Dk]
  at::Tensor k_weight, v_weight, k_bias, v_bias;  // [Hkv * dh, Dk], undefined or [Hkv * dh]
  int64_t heads = 0;                              // Hkv
  int64_t head_dim = 0;                           // dh
  HeadTransform transform;                        // of K
  WorkList open;                                  // the KV heads that run for each sample
};

/// A KV head runs for a sample when any of its query heads does; its gate counts them.
WorkList open_kv_heads(const AttentionProblem& problem, const WorkList& open);

/// That of a problem in which K and V are not given.
KvProblem kv_problem(const AttentionProblem& problem, const WorkList& open);

/// K and V, [B, Hkv, S, dh]; zero where closed, which is not computed.
std::pair<at::Tensor, at::Tensor> project_keys_values(const KvProblem& problem);

/// The same by the CPU kernels, contiguous; not in float64.
std::pair<at::Tensor, at::Tensor> project_keys_values_cpu(
    const KvProblem& problem);  // kv_launch.cpp

/// The same by plain operators, differentiable, every head computed.
std::pair<at::Tensor, at::Tensor> reference_keys_values(const KvProblem& problem);

/// What can be differentiated: the order of gradients and of the masks that ask for them.
enum KvDifferentiable : size_t {
  kSource,
  kSourceKWeight,
  kSourceVWeight,
  kSourceKBias,
  kSourceVBias,
  kSourceKNorm,
  kKvDifferentiable
};
using KvMask = std::array<bool, kKvDifferentiable>;
using KvTensors = std::array<at::Tensor, kKvDifferentiable>;

/// Gradients for those of K and V, in `sum_dtype`, of any shape with the right number of entries;
/// undefined where `mask` is false. Touches open pairs only.
KvTensors project_keys_values_backward(const KvProblem& problem, const at::Tensor& dk,
                                       const at::Tensor& dv, const KvMask& mask);

}  // namespace headkit
