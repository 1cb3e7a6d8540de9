#pragma once

#include "kernels/cpu/vector.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Steps of one chain of multiply-adds. Longer products are cut into chains whose sums are added up
// in memory: rounding grows with the square root of the longest chain, and a panel of B of this
// depth stays in the first-level cache while the rows of A pass by.
constexpr int64_t kChain = 256;

// The one product of this library. C[MR x NV vectors] = sum over segments and k of
// A(i, k) * B_s[k][j], with A(i, k) = a[k * a_stride + i * ARow] running on through the segments,
// and B_s rows of NV vectors, `b_stride` floats apart. Each element is one chain over ascending k,
// whatever MR and NV are: a tile's shape never shows in a result.
//   B:      const float* operator()(int64_t segment)
//   ahead:  what comes after this tile; `ahead_stride` floats further are fetched at each step
//   Finish: void operator()(int i, int j, Vec), takes the sum of row i, vector j
template <int MR, int NV, int ARow = 1, class B, class Finish>
__attribute__((noinline)) void tile(int64_t segments, int64_t depth, const float* a,
                                    int64_t a_stride, const B& b_of, int64_t b_stride,
                                    const float* ahead, int64_t ahead_stride,
                                    const Finish& finish) {
  Vec c[MR][NV];
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) c[i][j] = zero();
  }
  for (int64_t s = 0; s < segments; ++s) {
    const float* b = b_of(s);
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; ++k) {
      __builtin_prefetch(ahead);
      ahead += ahead_stride;
      Vec row[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) row[j] = load(b + j * kLanes);
#pragma GCC unroll 32
      for (int i = 0; i < MR; ++i) {
        const Vec x = broadcast(a[i * ARow]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) c[i][j] = fma(x, row[j], c[i][j]);
      }
      a += a_stride;
      b += b_stride;
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) finish(i, j, c[i][j]);
  }
}

// Calls run(first step, steps, is first chain, is last chain) for each chain of a product.
template <class Run>
HEADKIT_INLINE void for_chains(int64_t depth, const Run& run) {
  for (int64_t k = 0; k < depth; k += kChain) {
    const int64_t left = depth - k;
    run(k, left < kChain ? left : kChain, k == 0, left <= kChain);
  }
}

struct OneSegment {
  const float* b;
  HEADKIT_INLINE const float* operator()(int64_t) const { return b; }
};

// Calls run.template operator()<rows>(first row) until `count` rows are done, MR at a time, then
// 8, 4, 2 and 1.
template <int MR, class Run>
HEADKIT_INLINE void for_row_tiles(int64_t count, const Run& run) {
  int64_t i = 0;
  for (; i + MR <= count; i += MR) run.template operator()<MR>(i);
  if constexpr (MR > 8) {
    if (count - i >= 8) run.template operator()<8>(i), i += 8;
  }
  if constexpr (MR > 4) {
    if (count - i >= 4) run.template operator()<4>(i), i += 4;
  }
  if (count - i >= 2) run.template operator()<2>(i), i += 2;
  if (count - i >= 1) run.template operator()<1>(i);
}

// Calls run.template operator()<vectors>() for the number of vectors in a row of the tile.
template <class Run>
HEADKIT_INLINE void for_vectors(int64_t vectors, const Run& run) {
  if constexpr (kPanelVectors >= 3) {
    if (vectors == 3) return run.template operator()<3>();
  }
  if (vectors == 2) return run.template operator()<2>();
  run.template operator()<1>();
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kLine = 16;   // floats of a cache line
constexpr int64_t kAhead = 24;  // steps between a fetch of weights and their use

// Tokens of the panel that begins at `first`.
HEADKIT_INLINE int64_t panel_size(int64_t first, int64_t count) {
  return count - first < kPanel ? count - first : kPanel;
}

HEADKIT_INLINE int64_t vectors_of(int64_t tokens) { return ceil_div(tokens, kLanes); }

// Floats of a row of dh: see `rows` in params.h.
HEADKIT_INLINE int64_t row_floats(int64_t head_dim) { return ceil_div(head_dim, kLanes) * kLanes; }

// `count` columns cut into panels of at most kPanelVectors vectors, as equal as can be: 64 columns
// of 16 lanes are 2 + 2 vectors, not 3 + 1.
struct ColumnPanels {
  int64_t panels;
  int64_t vectors;  // of a full panel; the last may have fewer

  explicit ColumnPanels(int64_t count) {
    const int64_t total = ceil_div(count, kLanes);
    panels = ceil_div(total, kPanelVectors);
    vectors = panels == 0 ? 0 : ceil_div(total, panels);
    panels = vectors == 0 ? 0 : ceil_div(total, vectors);
    total_ = total;
  }
  int64_t width() const { return vectors * kLanes; }
  int64_t vectors_of(int64_t panel) const {
    const int64_t left = total_ - panel * vectors;
    return left < vectors ? left : vectors;
  }

 private:
  int64_t total_;
};

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
