#pragma once

#include "headkit/attention/gated_attention.h"

namespace headkit {

/// The oracle: dense, differentiable, in plain PyTorch operators, any device and dtype. Computes
/// every head and multiplies by the gates; `skip` changes nothing here. Arguments and result as
/// `gated_attention`, or as `attend` where `input` gives keys and values.
at::Tensor reference_attention(const at::Tensor& x, const AttentionWeights& weights,
                               int64_t num_heads, const AttentionInput& input = {});

/// Output of every head before the output projection, a_h, [B, T, H, dh]; gates and dropped outputs
/// of `input` are not applied. Keys and values may be given as above.
at::Tensor head_contexts(const at::Tensor& x, const AttentionWeights& weights, int64_t num_heads,
                         const AttentionInput& input = {});

}  // namespace headkit
