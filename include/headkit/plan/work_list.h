#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace headkit {

/// The heads that run in one batch: a sparse [batch, heads] matrix in two orders.
///
///     batch of 3 samples, 4 heads, open heads {0, 2}, {}, {1, 2, 3}
///
///     by sample   row_offset    0     2  2           5      batch + 1 entries
///                 head_index    0  2        1  2  3         ascending within a row
///                 scale         g of each pair              never 0
///     by head     col_offset    0  1  2     4  5            heads + 1 entries
///                 sample_index  0  2  0  2  2               ascending within a column
///                 pair_of       0  2  1  3  4               place of the pair in head_index
///
/// A pair is one active (sample, head); its number is its place in `head_index`.
struct WorkList {
  int64_t batch = 0;
  int64_t heads = 0;
  std::vector<int32_t> row_offset;    ///< [batch + 1]; starts at 0, never decreases
  std::vector<int32_t> head_index;    ///< [pairs]; each in [0, heads)
  std::vector<float> scale;           ///< [pairs]; the gate of the pair
  std::vector<int32_t> col_offset;    ///< [heads + 1]
  std::vector<int32_t> sample_index;  ///< [pairs]; each in [0, batch)
  std::vector<int32_t> pair_of;       ///< [pairs]; a permutation

  int64_t pairs() const { return static_cast<int64_t>(head_index.size()); }
  /// Open gates as bool [batch, heads], CPU: the way back.
  at::Tensor to_keep() const;
  /// Throws std::invalid_argument naming the first invariant that does not hold.
  void check(const char* operation) const;
  std::string to_json() const;
  static WorkList from_json(const std::string& text);
  bool operator==(const WorkList&) const = default;
};

/// The work list of gates [batch, heads] (float32 or float64, CPU): every gate != 0 is a pair.
/// O(batch * heads). Throws std::invalid_argument on another rank, dtype or device and on NaN or
/// infinity.
WorkList make_work_list(const at::Tensor& gate);

/// The work list in which every head of every sample runs with gate 1.
WorkList make_dense_work_list(int64_t batch, int64_t heads);

}  // namespace headkit
