#pragma once

// The vector of one instruction-set level and the few operations that the kernels need. No STL and
// no name with external linkage: these files are compiled once per level, and an inline function
// compiled for AVX-512 could be the copy that the linker keeps for everybody.

#include <stdint.h>

#if defined(HEADKIT_LEVEL_AVX512) || defined(HEADKIT_LEVEL_AVX2)
#include <immintrin.h>
#endif

#define HEADKIT_INLINE inline __attribute__((always_inline))

namespace headkit::kernels::HEADKIT_ISA {
namespace {

#if defined(HEADKIT_LEVEL_AVX512)

constexpr int kLanes = 16;
// A tile of 8 x 48: 24 accumulators, 3 vectors of B and one broadcast.
constexpr int kPanelVectors = 3;
constexpr int kWeightRows = 8;
constexpr int kTileRows[4] = {0, 16, 12, 8};  // by vectors in a row of the tile

struct Vec {
  __m512 v;
};

HEADKIT_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
// Bfloat16, widened.
HEADKIT_INLINE Vec load(const uint16_t* p) {
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(high, 16))};
}
HEADKIT_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
HEADKIT_INLINE Vec broadcast(float a) { return {_mm512_set1_ps(a)}; }
HEADKIT_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
HEADKIT_INLINE Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
HEADKIT_INLINE Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
HEADKIT_INLINE Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
HEADKIT_INLINE Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
HEADKIT_INLINE Vec square_root(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
HEADKIT_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
HEADKIT_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
HEADKIT_INLINE Vec round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
HEADKIT_INLINE float sum_lanes(Vec a) { return _mm512_reduce_add_ps(a.v); }
// a * 2^n for an integer-valued n.
HEADKIT_INLINE Vec scale_by_power(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// a < b ? x : y
HEADKIT_INLINE Vec if_less(Vec a, Vec b, Vec x, Vec y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
// a == b ? x : y
HEADKIT_INLINE Vec if_equal(Vec a, Vec b, Vec x, Vec y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ), y.v, x.v)};
}
HEADKIT_INLINE void keep_in_register(Vec& a) { __asm__ volatile("" : "+v"(a.v)); }

// rows[i][j] -> out[j * out_stride + i] for a square of kLanes x kLanes.
HEADKIT_INLINE void transpose_square(const float* const* rows, float* out, int64_t out_stride) {
  __m512 r[16], s[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(rows[i]);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    s[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(s[i]), _mm512_castps_pd(s[i + 2])));
    r[i + 1] =
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(s[i]), _mm512_castps_pd(s[i + 2])));
    r[i + 2] = _mm512_castpd_ps(
        _mm512_unpacklo_pd(_mm512_castps_pd(s[i + 1]), _mm512_castps_pd(s[i + 3])));
    r[i + 3] = _mm512_castpd_ps(
        _mm512_unpackhi_pd(_mm512_castps_pd(s[i + 1]), _mm512_castps_pd(s[i + 3])));
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
    _mm512_storeu_ps(out + j * out_stride, _mm512_shuffle_f32x4(a, c, 0x88));
    _mm512_storeu_ps(out + (4 + j) * out_stride, _mm512_shuffle_f32x4(b, d, 0x88));
    _mm512_storeu_ps(out + (8 + j) * out_stride, _mm512_shuffle_f32x4(a, c, 0xdd));
    _mm512_storeu_ps(out + (12 + j) * out_stride, _mm512_shuffle_f32x4(b, d, 0xdd));
  }
}

#elif defined(HEADKIT_LEVEL_AVX2)

constexpr int kLanes = 8;
// A tile of 4 x 24: 12 accumulators, 3 vectors of B and one broadcast, all 16 registers.
constexpr int kPanelVectors = 3;
constexpr int kWeightRows = 4;
constexpr int kTileRows[4] = {0, 8, 6, 4};

struct Vec {
  __m256 v;
};

HEADKIT_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
HEADKIT_INLINE Vec load(const uint16_t* p) {
  const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
HEADKIT_INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
HEADKIT_INLINE Vec broadcast(float a) { return {_mm256_set1_ps(a)}; }
HEADKIT_INLINE Vec zero() { return {_mm256_setzero_ps()}; }
HEADKIT_INLINE Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
HEADKIT_INLINE Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
HEADKIT_INLINE Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
HEADKIT_INLINE Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
HEADKIT_INLINE Vec square_root(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
HEADKIT_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
HEADKIT_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
HEADKIT_INLINE Vec round(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
HEADKIT_INLINE float sum_lanes(Vec a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
HEADKIT_INLINE Vec scale_by_power(Vec a, Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
}
HEADKIT_INLINE Vec if_less(Vec a, Vec b, Vec x, Vec y) {
  return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
HEADKIT_INLINE Vec if_equal(Vec a, Vec b, Vec x, Vec y) {
  return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ))};
}
HEADKIT_INLINE void keep_in_register(Vec& a) { __asm__ volatile("" : "+x"(a.v)); }

HEADKIT_INLINE void transpose_square(const float* const* rows, float* out, int64_t out_stride) {
  __m256 r[8], s[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(rows[i]);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(out + j * out_stride, _mm256_permute2f128_ps(r[j], r[4 + j], 0x20));
    _mm256_storeu_ps(out + (4 + j) * out_stride, _mm256_permute2f128_ps(r[j], r[4 + j], 0x31));
  }
}

#else  // scalar: any machine, whatever vectors of four floats the compiler finds there

constexpr int kLanes = 4;
constexpr int kPanelVectors = 2;
constexpr int kWeightRows = 4;
constexpr int kTileRows[4] = {0, 4, 4, 4};

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));

struct Vec {
  Float4 v;
};

HEADKIT_INLINE Vec load(const float* p) { return {Float4{p[0], p[1], p[2], p[3]}}; }
HEADKIT_INLINE Vec load(const uint16_t* p) {
  return {(Float4)(Int4{p[0], p[1], p[2], p[3]} << 16)};
}
HEADKIT_INLINE void store(float* p, Vec a) {
  for (int i = 0; i < 4; ++i) p[i] = a.v[i];
}
HEADKIT_INLINE Vec broadcast(float a) { return {Float4{a, a, a, a}}; }
HEADKIT_INLINE Vec zero() { return broadcast(0.0f); }
HEADKIT_INLINE Vec add(Vec a, Vec b) { return {a.v + b.v}; }
HEADKIT_INLINE Vec sub(Vec a, Vec b) { return {a.v - b.v}; }
HEADKIT_INLINE Vec mul(Vec a, Vec b) { return {a.v * b.v}; }
HEADKIT_INLINE Vec div(Vec a, Vec b) { return {a.v / b.v}; }
HEADKIT_INLINE Vec square_root(Vec a) {
  for (int i = 0; i < 4; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}
HEADKIT_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
HEADKIT_INLINE Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
HEADKIT_INLINE Vec if_less(Vec a, Vec b, Vec x, Vec y) { return {a.v < b.v ? x.v : y.v}; }
HEADKIT_INLINE Vec if_equal(Vec a, Vec b, Vec x, Vec y) { return {a.v == b.v ? x.v : y.v}; }
// Right for |a| < 2^22, which is all that the exponential asks for.
HEADKIT_INLINE Vec round(Vec a) {
  const Vec shift = broadcast(12582912.0f);
  return sub(add(a, shift), shift);
}
HEADKIT_INLINE float sum_lanes(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
HEADKIT_INLINE Vec scale_by_power(Vec a, Vec n) {
  const Vec inside = max(n, broadcast(-127.0f));
  const Int4 exponent = (__builtin_convertvector(inside.v, Int4) + 127) << 23;
  return {a.v * (Float4)exponent};
}
#if defined(__x86_64__)
HEADKIT_INLINE void keep_in_register(Vec& a) { __asm__ volatile("" : "+x"(a.v)); }
#elif defined(__aarch64__)
HEADKIT_INLINE void keep_in_register(Vec& a) { __asm__ volatile("" : "+w"(a.v)); }
#else
HEADKIT_INLINE void keep_in_register(Vec& a) { __asm__ volatile("" : "+m"(a.v)); }
#endif

HEADKIT_INLINE void transpose_square(const float* const* rows, float* out, int64_t out_stride) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) out[j * out_stride + i] = rows[i][j];
  }
}

#endif

constexpr int kPanel = kLanes * kPanelVectors;

// exp(x) to about one unit in the last place; exactly 0 below the smallest normal number, so that
// no denormal slows the products, and for -infinity.
HEADKIT_INLINE Vec exponential(Vec x) {
  const Vec lowest = broadcast(-87.336544f);
  const Vec n = round(mul(max(x, lowest), broadcast(1.44269504f)));
  Vec r = fma(n, broadcast(-0.693145752f), x);
  r = fma(n, broadcast(-1.42860682e-6f), r);
  Vec p = broadcast(1.39338232e-3f);  // fitted to (exp(r) - 1 - r) / r^2 at Chebyshev nodes
  p = fma(p, r, broadcast(8.36329535e-3f));
  p = fma(p, r, broadcast(4.1666463e-2f));
  p = fma(p, r, broadcast(1.66665763e-1f));
  p = fma(p, r, broadcast(0.5f));
  p = fma(mul(r, r), p, add(r, broadcast(1.0f)));
  return if_less(x, lowest, zero(), scale_by_power(p, n));
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
