#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "headkit/attention/gated_attention.h"
#include "kernels/bf16_params.h"
#include "operators/aligned_floats.h"
#include "operators/task_queue.h"
#include "operators/weight_cache.h"

namespace headkit {

/// Some weights of one layer in the layouts of the CPU kernels: the same parts for every head. In
/// float32 whatever their dtype (kernels/params.h), or in pairs of bfloat16 with vectors in float32
/// (kernels/bf16_params.h).
class PackedHeads {
 public:
  /// One part of a head.
  struct Part {
    enum Layout { kBlocks, kColumnPanels, kVector };
    Layout layout;
    at::Tensor from;    // a vector may be undefined: zeros
    int64_t head_step;  // elements of `from` between heads
    int64_t count;      // of a vector: its length, rounded up to full vectors with zeros
    int64_t depth = 1;
    int64_t stride = 1;
    bool transposed = false;
  };

  enum class Operand { kFloat32, kBf16Pair };

  /// `wanted` [heads]: heads to pack, empty = all; the others stay unset. In memory of its own, or
  /// of `arena`.
  PackedHeads(std::vector<Part> parts, int64_t heads, const std::vector<bool>& wanted = {},
              Operand operand = Operand::kFloat32, Arena* arena = nullptr);

  /// A part; its pairs lie in the places of floats.
  const float* at(int64_t head, int64_t part) const {
    return data_.get() + head * head_floats_ + offset_[part];
  }

 private:
  AlignedFloats data_{nullptr, nullptr};
  std::vector<int64_t> offset_;
  int64_t head_floats_ = 0;
};

/// The parts of a query head, and of a KV head.
enum QueryPart : int64_t { kQueryBlocks, kQueryBias };
enum KeyValuePart : int64_t { kKeyBlocks, kKeyBias, kValuePanels, kValueBias };
/// Of few tokens, queries are computed in rows; keys and values always so where they are cached.
enum RowsPart : int64_t { kRowPanels, kRowBias };
/// The packed forms, from `cached_packing`; in pairs only of bfloat16 weights.
std::shared_ptr<const PackedHeads> packed_query_heads(
    const AttentionWeights& weights, int64_t heads, int64_t head_dim,
    PackedHeads::Operand operand = PackedHeads::Operand::kFloat32);
std::shared_ptr<const PackedHeads> packed_key_value_heads(
    const AttentionWeights& weights, int64_t kv_heads, int64_t head_dim,
    PackedHeads::Operand operand = PackedHeads::Operand::kFloat32);
/// Of the output projection there is one part: its column panels.
std::shared_ptr<const PackedHeads> packed_output_heads(
    const AttentionWeights& weights, int64_t heads, int64_t head_dim,
    PackedHeads::Operand operand = PackedHeads::Operand::kFloat32);
/// RowsPart of one projection x W^T + b, W [heads*dh, D].
std::shared_ptr<const PackedHeads> packed_rows(const at::Tensor& weight, const at::Tensor& bias,
                                               int64_t heads, int64_t head_dim);

/// For the backward, never from the cache: somebody trains these weights. One part each: W_O [D,
/// H*dh] in blocks for dy W_O, and a projection W [heads*dh, D] in column panels for dy W. They lie
/// in `arena`: fresh memory for every step would cost as much as the packing.
PackedHeads pack_output_blocks(const at::Tensor& weight, int64_t head_dim,
                               const std::vector<bool>& wanted, Arena& arena);
PackedHeads pack_input_panels(const at::Tensor& weight, int64_t head_dim,
                              const std::vector<bool>& wanted, Arena& arena);

}  // namespace headkit
