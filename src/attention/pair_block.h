#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/attention_problem.h"

namespace headkit {

/// Some rows of one dimension, ascending: all of it, a run or a scattered choice.
class Rows {
 public:
  Rows(std::vector<int64_t> rows, int64_t total, at::Device device);

  int64_t count() const { return static_cast<int64_t>(rows_.size()); }
  /// These rows of `tensor` along `dim`; a view unless scattered. A dimension of size 1 that stands
  /// for all rows is returned as it is.
  at::Tensor of(const at::Tensor& tensor, int64_t dim) const;
  /// Adds `part` to these rows of `tensor` along `dim`, in place.
  void add_to(at::Tensor& tensor, int64_t dim, const at::Tensor& part) const;
  /// int64, on the device.
  const at::Tensor& index() const;

 private:
  bool stands_for_all(const at::Tensor& tensor, int64_t dim) const {
    return tensor.size(dim) == 1 && total_ != 1;
  }
  bool is_run() const { return rows_.empty() || rows_.back() - rows_.front() + 1 == count(); }

  std::vector<int64_t> rows_;
  int64_t total_;
  at::Device device_;
  mutable at::Tensor index_;  // made when first asked for: a copy to the device
};

/// Pairs that the composite computes as one dense problem: each of some heads for each of some
/// samples.
struct PairBlock {
  Rows samples;
  Rows heads;

  /// Adds `part` to the place of this block in `tensor`, in place.
  void add_to(at::Tensor& tensor, int64_t sample_dim, int64_t head_dim,
              const at::Tensor& part) const;
};

/// Bool [B, H] on the CPU: the pairs that run. In mask mode all of them.
at::Tensor open_pairs(const AttentionProblem& problem);

/// Every open pair once, in a fixed order. Heads that run for the same samples share blocks, so
/// that a dense problem, or one gate for all samples, is one block. Splits blocks of more than
/// `max_scores` entries of [samples, heads, T, T], down to one pair.
std::vector<PairBlock> pair_blocks(const AttentionProblem& problem, int64_t max_scores);

/// What the two directions of the composite share on one block of n samples and m heads.
struct BlockOperands {
  at::Tensor x;                             // [n * T, D]
  at::Tensor q_weight, k_weight, v_weight;  // [m * dh, D]
  at::Tensor o_weight;                      // [D, m * dh]
  at::Tensor q, k, v;                       // [n, m, T, dh]
  at::Tensor gate;                          // undefined or broadcastable to [n, m, T, 1], not cast
  at::Tensor bias;                          // undefined or broadcastable to [n, m, T, T]
  at::Tensor admissible;                    // undefined or bool, broadcastable to [n, m, T, T]
};
BlockOperands block_operands(const AttentionProblem& problem, const PairBlock& block);

/// Softmax over the admissible keys, [n, m, T, T], zero where there are none. Reduced precision is
/// widened to float32.
at::Tensor block_probabilities(const AttentionProblem& problem, const BlockOperands& operands);

/// [n, m, T, dh] -> [n * T, m * dh] and back.
at::Tensor merge_heads(const at::Tensor& context);
at::Tensor split_heads(const at::Tensor& merged, int64_t samples, int64_t heads, int64_t head_dim);

/// The dtype in which sums over heads and samples are kept.
at::ScalarType sum_dtype(at::ScalarType dtype);

/// Entries of [samples, heads, T, T] that a block may materialise.
inline constexpr int64_t kMaxScores = int64_t{1} << 23;

}  // namespace headkit
