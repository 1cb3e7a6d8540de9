#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "attention/attention_problem.h"
#include "attention/key_positions.h"
#include "headkit/plan/work_list.h"

namespace headkit {

/// Some rows of one dimension, without repeats: all of it, an ascending run or a scattered choice.
class Rows {
 public:
  Rows(std::vector<int64_t> rows, int64_t total, at::Device device);

  int64_t count() const { return static_cast<int64_t>(rows_.size()); }
  /// Whether `of` copies.
  bool copies(const at::Tensor& tensor, int64_t dim) const {
    return !is_run_ && !stands_for_all(tensor, dim);
  }
  /// These rows of `tensor` along `dim`; a view unless scattered. A dimension of size 1 that stands
  /// for all rows is returned as it is.
  at::Tensor of(const at::Tensor& tensor, int64_t dim) const;
  /// Adds `part` to these rows of `tensor` along `dim`, in place.
  void add_to(const at::Tensor& tensor, int64_t dim, const at::Tensor& part) const;
  /// Row `place` alone.
  Rows one(int64_t place) const { return {{rows_[place]}, total_, device_}; }
  /// int64, on the device.
  const at::Tensor& index() const;

 private:
  bool stands_for_all(const at::Tensor& tensor, int64_t dim) const {
    return tensor.size(dim) == 1 && total_ != 1;
  }

  std::vector<int64_t> rows_;
  int64_t total_;
  at::Device device_;
  bool is_run_;
  mutable at::Tensor index_;  // made when first asked for: a copy to the device
};

/// The place of each of some heads for each of some samples in a tensor that has a dimension for
/// either.
struct Pairs {
  const Rows& samples;
  const Rows& heads;

  /// A view where both are runs.
  at::Tensor of(const at::Tensor& tensor, int64_t sample_dim, int64_t head_dim) const;
  /// Adds `part` in place.
  void add_to(const at::Tensor& tensor, int64_t sample_dim, int64_t head_dim,
              const at::Tensor& part) const;
};

/// The transform for some samples.
HeadTransform transform_of(HeadTransform transform, const Rows& samples);

/// Pairs that the composite computes as one dense problem: each of m heads for each of n samples.
/// The heads lie in order of their KV heads, the same number for each of mk.
struct PairBlock {
  Rows samples;
  Rows heads;
  Rows kv_heads;

  Pairs pairs() const { return {samples, heads}; }
  Pairs kv_pairs() const { return {samples, kv_heads}; }
};

/// The pairs that run. In mask mode all of them.
WorkList open_pairs(const AttentionProblem& problem);

/// Samples that agree on their heads: every pair of `list` in one group.
using HeadGroup = std::pair<std::vector<int64_t>, std::vector<int64_t>>;  // samples, heads
std::vector<HeadGroup> head_groups(const WorkList& list);

/// Every open pair once, in a fixed order. Heads that run for the same samples share blocks, so
/// that a dense problem, or one gate for all samples, is one block if its KV heads have equally
/// many query heads. Given keys and values are then not copied: their heads in a block are a run.
/// Splits blocks of more than `max_scores` entries of [samples, heads, T, S], down to one pair.
std::vector<PairBlock> pair_blocks(const AttentionProblem& problem, const WorkList& open,
                                   int64_t max_scores);

/// What the two directions of the composite share on one block; S counts the reachable keys.
struct BlockOperands {
  at::Tensor x;                   // [n * T, D]
  at::Tensor q_weight, o_weight;  // [m * dh, D], [D, m * dh]
  HeadTransform q_transform;      // of these samples
  at::Tensor projected_q;         // [n, m, T, dh], before the transform
  at::Tensor q;                   // [n, m, T, dh]
  at::Tensor k, v;                // [n, mk, S, dh]
  at::Tensor gate;                // undefined or broadcastable to [n, m, T, 1], not cast
  at::Tensor bias;                // undefined or broadcastable to [n, m, T, S]
  at::Tensor admissible;          // undefined or bool, broadcastable to [n, m, T, S]
};
/// `k`, `v` [B, Hkv, S, dh] of all keys; `position`: what `position_mask` said, or undefined.
BlockOperands block_operands(const AttentionProblem& problem, const PairBlock& block,
                             const at::Tensor& k, const at::Tensor& v, const KeyRange& keys,
                             const at::Tensor& position);

/// Softmax over the admissible keys, [n, m, T, S], zero where there are none. Reduced precision is
/// widened to float32.
at::Tensor block_probabilities(const AttentionProblem& problem, const BlockOperands& operands);

/// [n, m, T, c] -> [n, kv_heads, m / kv_heads * T, c]: the rows that meet one KV head, together.
at::Tensor fold_groups(const at::Tensor& heads, int64_t kv_heads);
/// a b for each head: a [n, m, T, c], b [n, mk, c, e] -> [n, m, T, e].
at::Tensor group_matmul(const at::Tensor& a, const at::Tensor& b);

/// [n, m, T, dh] -> [n * T, m * dh] and back.
at::Tensor merge_heads(const at::Tensor& context);
at::Tensor split_heads(const at::Tensor& merged, int64_t samples, int64_t heads, int64_t head_dim);

/// Entries of [samples, heads, T, S] that a block may materialise.
inline constexpr int64_t kMaxScores = int64_t{1} << 23;

}  // namespace headkit
