#pragma once

#include "kernels/cpu/bf16_packing.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// scale * (W x + bias), for W in blocks of R rows and one token panel x: out [ceil(rows / 2)][P],
// or wide [rows][P] where that is given.
template <int NV>
void project_pair_panel(const Bf16Pair* weights, const float* bias, const Bf16Pair* x,
                        int64_t depth, int64_t rows, float scale, Bf16Pair* out, float* wide) {
  for (int64_t first = 0; first < rows; first += kWeightRows) {
    const int64_t count = rows - first < kWeightRows ? rows - first : kWeightRows;
    for_row_tiles<kWeightRows>(count, [&]<int MR>(int64_t i) {
      const int64_t row = first + i;
      const Bf16Pair* a = weights + first * depth + i;
      pair_tile<MR, NV>(1, depth, a, kWeightRows, OnePairSegment{x}, kPanel,
                        a + kAhead * kWeightRows, kWeightRows, [&](int r, int j, Vec c, Vec d) {
                          if (bias != nullptr) {
                            c = add(c, broadcast(bias[row + r]));
                            if (MR > 1) d = add(d, broadcast(bias[row + r + 1]));
                          }
                          const Vec factor = broadcast(scale);
                          c = mul(factor, c);
                          d = mul(factor, d);
                          if (wide == nullptr) {
                            store(out + (row + r) / 2 * kPanel + j * kLanes, round_pairs(c, d));
                            return;
                          }
                          float* to = wide + (row + r) * kPanel + j * kLanes;
                          store(to, c);
                          if (MR > 1) store(to + kPanel, d);
                        });
    });
  }
}

// out [ceil(tokens / 2)][stride] = x^T W + bias, for one token panel x and W in column panels.
void project_pair_columns(const Bf16Pair* x, int64_t tokens, const Bf16Pair* weights,
                          const ColumnPanels& panels, const float* bias, int64_t depth,
                          Bf16Pair* out, int64_t stride) {
  for (int64_t panel = 0; panel < panels.panels; ++panel) {
    const int64_t column = panel * panels.width();
    const Bf16Pair* from = weights + column * depth;
    for_vectors(panels.vectors_of(panel), [&]<int NV>() {
      for_row_tiles<kTileRows[NV]>(tokens, [&]<int MR>(int64_t i) {
        Bf16Pair* to = out + i / 2 * stride + column;
        // The next panel's weights, a line at each step of each tile.
        const Bf16Pair* ahead = from + (panels.width() + i / MR * kLine) * depth;
        pair_tile<MR, NV>(1, depth, x + i, kPanel, OnePairSegment{from}, panels.width(), ahead,
                          kLine, [&](int r, int j, Vec c, Vec d) {
                            if (bias != nullptr) {
                              const Vec of_column = load(bias + column + j * kLanes);
                              c = add(c, of_column);
                              if (MR > 1) d = add(d, of_column);
                            }
                            store(to + r / 2 * stride + j * kLanes, round_pairs(c, d));
                          });
      });
    });
  }
}

void project_pair_panels(const Bf16ProjectParams& p) {
  const int64_t depth = pairs_of(p.width);
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    const int64_t vectors = vectors_of(panel_size(token, p.num_tokens));
    for_vectors(vectors, [&]<int NV>() {
      project_pair_panel<NV>(p.weights, p.bias, p.tokens + token * depth, depth, p.head_dim,
                             p.scale, p.out + token * pairs_of(p.head_dim),
                             p.wide == nullptr ? nullptr : p.wide + token * p.head_dim);
    });
  }
}

void project_pair_rows(const Bf16ProjectParams& p) {
  const ColumnPanels panels(p.head_dim);
  const int64_t depth = pairs_of(p.width), stride = row_floats(p.head_dim);
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    project_pair_columns(p.tokens + token * depth, panel_size(token, p.num_tokens), p.weights,
                         panels, p.bias, depth, p.out + token / 2 * stride, stride);
  }
}

void round_pair_panels(const Bf16RoundParams& p) {
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    const float* from = p.panels + token * p.head_dim;
    Bf16Pair* to = p.out + token * pairs_of(p.head_dim);
    const int64_t vectors = vectors_of(panel_size(token, p.num_tokens));
    for (int64_t i = 0; i < p.head_dim; i += 2, from += 2 * kPanel, to += kPanel) {
      for (int64_t j = 0; j < vectors; ++j) {
        const Vec second = i + 1 < p.head_dim ? load(from + kPanel + j * kLanes) : zero();
        store(to + j * kLanes, round_pairs(load(from + j * kLanes), second));
      }
    }
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
