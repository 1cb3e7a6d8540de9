#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "headkit/attention/gated_attention.h"

namespace headkit {

/// Weights of one layer in the layout of the CPU kernels: `head_floats` floats for each head.
struct PackedWeights {
  std::unique_ptr<float, void (*)(void*)> data{nullptr, nullptr};
  int64_t head_floats = 0;
};

/// The packed form of float32 weights on CPU, from a cache where that is safe.
///
/// An entry is found again only through the same tensors (or views of the same tensors) with the
/// same storages, offsets, shapes and version counters. It is not used, and dropped, while somebody
/// trains these weights: grad mode is on and one of them requires grad. Inference tensors count no
/// versions and are packed at every call. An entry whose weights are gone goes at the next miss; at
/// most 1024 layers stay. Thread-safe; the result stays valid however long its owner holds it.
std::shared_ptr<const PackedWeights> packed_weights(const AttentionWeights& weights, int64_t heads,
                                                    int64_t head_dim);

/// The packed forms that a backward wants. Never from the cache: somebody trains these weights.
struct PackedBackwardWeights {
  PackedWeights forward, backward;
};
/// `wanted` [heads]: heads that run; the others stay unset.
PackedBackwardWeights pack_backward_weights(const AttentionWeights& weights,
                                            const std::vector<bool>& wanted, int64_t head_dim);

/// Layers in the cache.
int64_t packed_weights_count();

}  // namespace headkit
