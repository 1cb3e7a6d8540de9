#pragma once

#include "kernels/cpu/bf16_tile.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Pair k of a row of `depth` elements.
HEADKIT_INLINE Bf16Pair pair_at(const Bf16* row, int64_t k, int64_t depth) {
  const Bf16Pair low = row[2 * k];
  return 2 * k + 1 < depth ? low | static_cast<Bf16Pair>(row[2 * k + 1]) << 16 : low;
}

// Rows of `depth` elements -> out[k * lanes + i], pair k of row i, for `count` rows, the others 0.
// `row(i)` points at row i.
template <class Row>
HEADKIT_INLINE void pack_pairs(const Row& row, int64_t count, int64_t lanes, int64_t out_stride,
                               int64_t depth, Bf16Pair* out) {
  alignas(64) const Bf16Pair zeros[kLanes] = {};
  for (int64_t first = 0; first < lanes; first += kLanes) {
    const int64_t used = lanes - first < kLanes ? lanes - first : kLanes;
    const int64_t rows = count - first < used ? (count > first ? count - first : 0) : used;
    Bf16Pair* to = out + first;
    int64_t k = 0;
    for (; 2 * (k + kLanes) <= depth; k += kLanes) {
      // A transpose moves 32 bits and looks at none of them.
      const float* from[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        from[i] = reinterpret_cast<const float*>(
            i < rows ? static_cast<const void*>(row(first + i) + 2 * k) : zeros);
      }
      if (used == kLanes) {
        transpose_square(from, reinterpret_cast<float*>(to + k * out_stride), out_stride);
        continue;
      }
      Bf16Pair square[kLanes * kLanes];
      transpose_square(from, reinterpret_cast<float*>(square), kLanes);
      for (int64_t kk = 0; kk < kLanes; ++kk) {
        for (int64_t i = 0; i < used; ++i) to[(k + kk) * out_stride + i] = square[kk * kLanes + i];
      }
    }
    for (; k < pairs_of(depth); ++k) {
      for (int64_t i = 0; i < used; ++i) {
        to[k * out_stride + i] = i < rows ? pair_at(row(first + i), k, depth) : 0;
      }
    }
  }
}

void pack_pair_tokens(const Bf16PackTokensParams& p) {
  const auto row = [&p](int64_t i) {
    return p.x + (p.rows == nullptr ? i : static_cast<int64_t>(p.rows[i])) * p.row_stride;
  };
  pack_pairs(row, p.tokens, ceil_div(p.tokens, kLanes) * kLanes, kPanel, p.width, p.panel);
}

HEADKIT_INLINE void pack_pair_groups(const Bf16PackMatrixParams& p, int64_t lanes) {
  for (int64_t first = 0; first < p.count; first += lanes) {
    const auto row = [&](int64_t i) { return p.from + (first + i) * p.stride; };
    pack_pairs(row, p.count - first, lanes, lanes, p.depth, p.packed + first * pairs_of(p.depth));
  }
}

int64_t block_pairs(int64_t count, int64_t depth) {
  return ceil_div(ceil_div(count, kWeightRows) * kWeightRows * pairs_of(depth), 16) * 16;
}

int64_t column_panel_pairs(int64_t count, int64_t depth) {
  const ColumnPanels panels(count);
  return ceil_div(panels.panels * panels.width() * pairs_of(depth), 16) * 16;
}

void pack_pair_blocks(const Bf16PackMatrixParams& p) { pack_pair_groups(p, kWeightRows); }

void pack_pair_column_panels(const Bf16PackMatrixParams& p) {
  const ColumnPanels panels(p.count);
  if (panels.panels > 0) pack_pair_groups(p, panels.width());
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
