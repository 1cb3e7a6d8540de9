#pragma once

#include "kernels/cpu/bf16_project.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Writes the first `count` lanes, rounded to nearest even.
HEADKIT_INLINE void store_rounded(Bf16* to, Vec a, int64_t count) {
  const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(a.v);
  if (count >= kLanes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded);
  } else if (count > 0) {
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1), rounded);
  }
}

HEADKIT_INLINE __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= kLanes ? 0xffff : count > 0 ? (1u << count) - 1 : 0);
}
HEADKIT_INLINE Vec load_lanes(const float* from, int64_t count) {
  return {_mm512_maskz_loadu_ps(first_lanes(count), from)};
}
HEADKIT_INLINE void store_lanes(float* to, Vec a, int64_t count) {
  _mm512_mask_storeu_ps(to, first_lanes(count), a.v);
}

// One panel of columns of the output.
template <int NV>
void output_pair_panel(const Bf16SumProjectionsParams& p, int64_t panel_width, int64_t column) {
  const int64_t depth = pairs_of(p.head_dim), left = p.width - column;
  const float* start = p.start + column;
  const auto b_of = [&](int64_t s) { return p.weights[s] + column * depth; };
  int64_t tiles = 0;
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    const Bf16Pair* context = p.context + token / kPanel * p.context_stride;
    for_row_tiles<kTileRows[NV]>(panel_size(token, p.num_tokens), [&]<int MR>(int64_t i) {
      Bf16* out = p.out + (token + i) * p.width + column;
      // While this panel runs, the weights of the next one come closer: one segment a tile.
      const Bf16Pair* ahead = context;
      if (tiles < p.num_segments) ahead = p.weights[tiles] + (column + panel_width) * depth;
      ++tiles;
      pair_tile<MR, NV>(p.num_segments, depth, context + i, kPanel, b_of, panel_width, ahead, kLine,
                        [&](int r, int j, Vec c, Vec d) {
                          const int64_t lanes = left - j * kLanes;
                          float* sums = nullptr;
                          if (p.sums != nullptr) {
                            sums = p.sums + (token + i + r) * p.width + column + j * kLanes;
                          }
                          if (p.add) {
                            c = add(c, load_lanes(sums, lanes));
                            if (MR > 1) d = add(d, load_lanes(sums + p.width, lanes));
                          }
                          if (!p.finish) {
                            store_lanes(sums, c, lanes);
                            if (MR > 1) store_lanes(sums + p.width, d, lanes);
                            return;
                          }
                          const Vec begin = load(start + j * kLanes);
                          Bf16* to = out + r * p.width + j * kLanes;
                          store_rounded(to, add(c, begin), lanes);
                          if (MR > 1) store_rounded(to + p.width, add(d, begin), lanes);
                        });
    });
  }
}

void sum_pair_projections(const Bf16SumProjectionsParams& p) {
  if (p.num_segments == 0) {
    for (int64_t t = 0; t < p.num_tokens && p.part == 0; ++t) {
      for (int64_t i = 0; i < p.width; i += kLanes) {
        store_rounded(p.out + t * p.width + i, load(p.start + i), p.width - i);
      }
    }
    return;
  }
  const ColumnPanels panels(p.width);
  const int64_t end = panels.panels * (p.part + 1) / p.parts;
  for (int64_t panel = panels.panels * p.part / p.parts; panel < end; ++panel) {
    for_vectors(panels.vectors_of(panel), [&]<int NV>() {
      output_pair_panel<NV>(p, panels.width(), panel * panels.width());
    });
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
