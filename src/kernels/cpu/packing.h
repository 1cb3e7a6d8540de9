#pragma once

#include "kernels/cpu/tile.h"
#include "kernels/params.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// rows[i][j] -> out[j * out_stride + i] for `count` rows (the others 0) of `length` floats; `lanes`
// values are written for each j. `row(i)` points at row i.
template <class Row>
HEADKIT_INLINE void pack_transposed(const Row& row, int64_t count, int64_t lanes, int64_t length,
                                    float* out, int64_t out_stride) {
  const float zeros[kLanes] = {};
  for (int64_t first = 0; first < lanes; first += kLanes) {
    float* to = out + first;
    const int64_t used = lanes - first < kLanes ? lanes - first : kLanes;
    const float* rows[kLanes];
    int64_t j = 0;
    for (; j + kLanes <= length; j += kLanes) {
      for (int64_t i = 0; i < kLanes; ++i) {
        rows[i] = i < used && first + i < count ? row(first + i) + j : zeros;
      }
      if (used == kLanes) {
        transpose_square(rows, to + j * out_stride, out_stride);
        continue;
      }
      float square[kLanes * kLanes];
      transpose_square(rows, square, kLanes);
      for (int64_t jj = 0; jj < kLanes; ++jj) {
        for (int64_t i = 0; i < used; ++i) to[(j + jj) * out_stride + i] = square[jj * kLanes + i];
      }
    }
    for (; j < length; ++j) {
      for (int64_t i = 0; i < used; ++i) {
        to[j * out_stride + i] = first + i < count ? row(first + i)[j] : 0.0f;
      }
    }
  }
}

void pack_tokens(const PackTokensParams& p) {
  const auto row = [&p](int64_t i) {
    return p.x + (p.rows == nullptr ? i : static_cast<int64_t>(p.rows[i])) * p.row_stride;
  };
  const int64_t lanes = ceil_div(p.tokens, kLanes) * kLanes;
  pack_transposed(row, p.tokens, lanes, p.width, p.panel, kPanel);
}

int64_t block_floats(int64_t count, int64_t depth) {
  return ceil_div(ceil_div(count, kWeightRows) * kWeightRows * depth, 16) * 16;
}

int64_t column_panel_floats(int64_t count, int64_t depth) {
  const ColumnPanels panels(count);
  return ceil_div(panels.panels * panels.width() * depth, 16) * 16;
}

// `used` of `lanes` neighbours of each of `depth` rows, the others 0: a matrix that is read in the
// direction in which it is written.
HEADKIT_INLINE void pack_straight(const float* from, int64_t stride, int64_t used, int64_t lanes,
                                  int64_t depth, float* out) {
  for (int64_t k = 0; k < depth; ++k, from += stride, out += lanes) {
    int64_t i = 0;
    for (; i + kLanes <= used; i += kLanes) store(out + i, load(from + i));
    for (; i < used; ++i) out[i] = from[i];
    for (; i < lanes; ++i) out[i] = 0.0f;
  }
}

// Groups of `lanes` neighbours of M, [groups][depth][lanes].
HEADKIT_INLINE void pack_groups(const PackMatrixParams& p, int64_t lanes) {
  for (int64_t first = 0; first < p.count; first += lanes) {
    const int64_t used = p.count - first < lanes ? p.count - first : lanes;
    float* out = p.packed + first * p.depth;
    if (p.transposed) {
      pack_straight(p.from + first, p.stride, used, lanes, p.depth, out);
    } else {
      const auto row = [&](int64_t i) { return p.from + (first + i) * p.stride; };
      pack_transposed(row, used, lanes, p.depth, out, lanes);
    }
  }
}

void pack_blocks(const PackMatrixParams& p) { pack_groups(p, kWeightRows); }

void pack_column_panels(const PackMatrixParams& p) {
  const ColumnPanels panels(p.count);
  if (panels.panels > 0) pack_groups(p, panels.width());
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
