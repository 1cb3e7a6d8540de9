#pragma once

#include "kernels/bf16_params.h"
#include "kernels/cpu/tile.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Sixteen pairs, as an operand of the dot product.
struct Pairs {
  __m512i v;
};

HEADKIT_INLINE Pairs load(const Bf16Pair* p) { return {_mm512_loadu_si512(p)}; }
HEADKIT_INLINE void store(Bf16Pair* p, Pairs a) { _mm512_storeu_si512(p, a.v); }
HEADKIT_INLINE Pairs broadcast(Bf16Pair a) { return {_mm512_set1_epi32(static_cast<int>(a))}; }

// c + the dot products of the pairs.
HEADKIT_INLINE Vec multiply_pairs(Pairs a, Pairs b, Vec c) {
  return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v)};
}

// Pairs of (first[i], second[i]), rounded to nearest even.
HEADKIT_INLINE Pairs round_pairs(Vec first, Vec second) {
  // All of `first` in the low half, all of `second` in the high one.
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second.v, first.v);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return {_mm512_permutexvar_epi16(order, halves)};
}

// The product of tile.h on pairs: C[MR x NV vectors] = sum over segments and pairs of
// A(i, k) . B_s[k][j]. Sums are float32, one chain over ascending k. Rows leave two at a time,
// because two rows of one product are a row of pairs for the next:
//   Finish: void operator()(int i, int j, Vec row i, Vec row i + 1); the latter is 0 if MR is 1
template <int MR, int NV, class B, class Finish>
__attribute__((noinline)) void pair_tile(int64_t segments, int64_t depth, const Bf16Pair* a,
                                         int64_t a_stride, const B& b_of, int64_t b_stride,
                                         const Bf16Pair* ahead, int64_t ahead_stride,
                                         const Finish& finish) {
  static_assert(MR == 1 || MR % 2 == 0);
  Vec c[MR][NV];
#pragma GCC unroll 32
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) c[i][j] = zero();
  }
  for (int64_t s = 0; s < segments; ++s) {
    const Bf16Pair* b = b_of(s);
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; ++k) {
      __builtin_prefetch(ahead);
      ahead += ahead_stride;
      Pairs row[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) row[j] = load(b + j * kLanes);
#pragma GCC unroll 32
      for (int i = 0; i < MR; ++i) {
        const Pairs x = broadcast(a[i]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) c[i][j] = multiply_pairs(x, row[j], c[i][j]);
      }
      a += a_stride;
      b += b_stride;
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < MR; i += 2) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j)
      finish(i, j, c[i][j], MR == 1 ? zero() : c[MR == 1 ? 0 : i + 1][j]);
  }
}

struct OnePairSegment {
  const Bf16Pair* b;
  HEADKIT_INLINE const Bf16Pair* operator()(int64_t) const { return b; }
};

HEADKIT_INLINE int64_t pairs_of(int64_t depth) { return ceil_div(depth, 2); }

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
