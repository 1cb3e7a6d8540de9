#pragma once

#include "kernels/cpu/tile.h"

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

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
