#pragma once

#include <memory>

#include "feed_forward/feed_forward_call.h"
#include "operators/weight_cache.h"

namespace headkit {

/// Weights of one layer in the layout of the CPU kernels: `block_floats` floats for each block.
struct PackedBlocks {
  AlignedFloats data{nullptr, nullptr};
  int64_t block_floats = 0;
  int64_t output = 0;  // where the weights of the output begin in those of a block

  const float* output_of(int64_t block) const { return data.get() + block * block_floats + output; }
};

/// The packed form of weights on CPU, from `cached_packing`.
std::shared_ptr<const PackedBlocks> packed_blocks(const FeedForwardProblem& problem);

}  // namespace headkit
