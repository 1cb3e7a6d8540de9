#pragma once

#include "kernels/cpu/vector.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Steps of a chain of multiply-adds before it is folded into a total: rounding grows with the
// square root of the longest chain, and one chain of thousands would be less exact than a good
// BLAS.
constexpr int64_t kChain = 256;

// The one product of this library. C[MR x NV vectors] = sum over segments and k of
// A(i, k) * B_s[k][j], with A(i, k) = a[k * a_stride + i] running on through the segments, and B_s
// rows of NV vectors, `b_stride` floats apart. Each element is summed over ascending k in chains of
// kChain, whatever MR and NV are: a tile's shape never shows in a result.
//   B:      const float* operator()(int64_t segment)
//   Finish: void operator()(int i, int j, Vec), takes the sum of row i, vector j
template <int MR, int NV, class B, class Finish>
__attribute__((noinline)) void tile(int64_t segments, int64_t depth, const float* a,
                                    int64_t a_stride, const B& b_of, int64_t b_stride,
                                    const Finish& finish) {
  Vec c[MR][NV];
  float total[MR * NV * kLanes] __attribute__((aligned(64)));
  bool folded = false;
  int64_t room = kChain;
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) c[i][j] = zero();
  }
  for (int64_t s = 0; s < segments; ++s) {
    const float* b = b_of(s);
    for (int64_t done = 0; done < depth;) {
      if (room == 0) {
#pragma GCC unroll 32
        for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j) {
            float* at = total + (i * NV + j) * kLanes;
            store(at, folded ? add(load(at), c[i][j]) : c[i][j]);
            c[i][j] = zero();
          }
        }
        folded = true;
        room = kChain;
      }
      const int64_t steps = depth - done < room ? depth - done : room;
#pragma GCC unroll 4
      for (int64_t k = 0; k < steps; ++k) {
        Vec row[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) row[j] = load(b + j * kLanes);
#pragma GCC unroll 32
        for (int i = 0; i < MR; ++i) {
          const Vec x = broadcast(a[i]);
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j) c[i][j] = fma(x, row[j], c[i][j]);
        }
        a += a_stride;
        b += b_stride;
      }
      done += steps;
      room -= steps;
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      if (folded) c[i][j] = add(load(total + (i * NV + j) * kLanes), c[i][j]);
      finish(i, j, c[i][j]);
    }
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
