#pragma once

#include <cstdint>
#include <vector>

#include "feed_forward/sample_groups.h"

namespace headkit {

/// Rows of x [B * T, D], of one group of samples, that one task computes.
struct RowBlock {
  int64_t group = 0;
  int64_t first = 0;  // the first row, if they lie beside each other
  int64_t count = 0;
  std::vector<int32_t> index;  // [count] the rows; empty if they lie beside each other
};

/// The rows of all groups in blocks of about 192 rows: each weight comes from memory once for them.
/// Fewer rows where threads would be idle; most work first, so that small blocks fill the idle tail
/// of the last threads. How rows are cut cannot change a result.
std::vector<RowBlock> make_row_blocks(const std::vector<SampleGroup>& groups, int64_t length,
                                      int64_t panel, int64_t threads);

/// Blocks of neurons whose hidden values are kept at a time: as many as stay in a second-level
/// cache beside the weights. Sums are cut there, so it is a matter of the layer alone.
int64_t hidden_chunk(int64_t block_size);

}  // namespace headkit
