#pragma once

#include "kernels/cpu/transposed.h"
#include "kernels/params.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

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
