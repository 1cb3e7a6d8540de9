#pragma once

#include <memory>

#include "feed_forward/feed_forward_call.h"
#include "operators/aligned_floats.h"
#include "operators/weight_cache.h"

namespace headkit {

/// Weights of one layer in the layout of the CPU kernels: `block_floats` floats, or pairs of
/// bfloat16 in their places, for each block.
struct PackedBlocks {
  AlignedFloats data{nullptr, nullptr};
  int64_t block_floats = 0;
  int64_t output = 0;  // where the weights of the output begin in those of a block

  /// All of them, and the weights of the output of one block; `Packed` is float or a pair.
  template <class Packed>
  const Packed* all() const {
    return reinterpret_cast<const Packed*>(data.get());
  }
  template <class Packed>
  const Packed* output_of(int64_t block) const {
    return all<Packed>() + block * block_floats + output;
  }
};

/// The packed form of weights on CPU, from `cached_packing`, for products of `Operand`
/// (operators/operand.h).
template <class Operand>
std::shared_ptr<const PackedBlocks> packed_blocks(const FeedForwardProblem& problem);

}  // namespace headkit
