#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "headkit/attention/gated_attention.h"

namespace headkit {

/// One call of the operator after its checks: what every backend may rely on.
struct AttentionProblem {
  at::Tensor x;              // [B, T, D]
  AttentionWeights weights;  // dtype and device of x
  int64_t heads = 0;         // H; may be 0
  int64_t head_dim = 0;      // dh
  double scale = 1.0;
  at::Tensor gate;              // undefined, [H], [B, H] or [B, T, H]
  at::Tensor key_padding_mask;  // undefined or bool [B, T]
  at::Tensor attn_bias;         // undefined or four-dimensional, broadcastable to [B, H, T, T]
  at::Tensor dropped_output;    // undefined or [H, D]
  double dropout_p = 0.0;
  int64_t dropout_seed = 0;
  bool skip = true;
  bool is_causal = false;
};

/// Forward of one backend, [B, T, D], contiguous. None of them records a graph of its own, but for
/// the reference where autograd is on. GradMode is on while a caller records a graph, so that
/// packed weights can be refreshed in training.
at::Tensor attention_reference(const AttentionProblem& problem);  // reference.cpp
at::Tensor attention_composite(const AttentionProblem& problem);  // composite.cpp: backend "aten"
at::Tensor attention_cpu(const AttentionProblem& problem);        // launch.cpp: backend "cpu"

/// Empty if the CPU kernels can run this problem, else what they lack.
std::string attention_cpu_refusal(const AttentionProblem& problem);  // launch.cpp

/// The backend of a problem. Throws std::runtime_error if HEADKIT_BACKEND names one that cannot run
/// it.
BackendChoice choose_backend(const AttentionProblem& problem);  // backend.cpp

}  // namespace headkit
