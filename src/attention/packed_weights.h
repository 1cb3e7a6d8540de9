#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "headkit/attention/gated_attention.h"
#include "operators/weight_cache.h"

namespace headkit {

/// Weights of one layer in the layout of the CPU kernels: `head_floats` floats for each head.
struct PackedWeights {
  AlignedFloats data{nullptr, nullptr};
  int64_t head_floats = 0;
};

/// The packed form of weights on CPU, in float32 whatever their dtype, from `cached_packing`.
std::shared_ptr<const PackedWeights> packed_weights(const AttentionWeights& weights, int64_t heads,
                                                    int64_t head_dim);

/// The packed forms that a backward wants. Never from the cache: somebody trains these weights.
struct PackedBackwardWeights {
  PackedWeights forward, backward;
};
/// `wanted` [heads]: heads that run; the others stay unset.
PackedBackwardWeights pack_backward_weights(const AttentionWeights& weights,
                                            const std::vector<bool>& wanted, int64_t head_dim);

}  // namespace headkit
