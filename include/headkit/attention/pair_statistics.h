#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "headkit/attention/gated_attention.h"

namespace headkit {

/// What each query does with each head, [B, H, T], float32 (float64 for float64). NaN for closed
/// heads, which are not computed; a query that sees no key has log-sum-exp -infinity and zeros.
struct PairStatistics {
  at::Tensor log_sum_exp;        ///< of the scaled scores
  at::Tensor entropy;            ///< of the attention probabilities, in nats; 0 .. log(S)
  at::Tensor largest_weight;     ///< of the attention probabilities
  at::Tensor contribution_norm;  ///< |g a_h W_O^h^T|: what the head adds to the output, Euclidean
};

/// Statistics of one call of `gated_attention` or, where `input` gives keys and values, of
/// `attend`. On backend `cpu` no probability lies in memory: the cost is that of a forward and one
/// more product of queries and keys. Elsewhere, and for given keys, plain operators compute [B, H,
/// T, S]. Without gradients. Throws as `gated_attention`; on gates [B, T, H] and dropout too.
///
/// Source: Voita et al. 2019 (largest weight as a head's confidence); Kobayashi et al. 2020
/// (norms).
PairStatistics pair_statistics(const at::Tensor& x, const AttentionWeights& weights,
                               int64_t num_heads, const AttentionInput& input = {});

}  // namespace headkit
