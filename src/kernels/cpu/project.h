#pragma once

#include "kernels/cpu/packing.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// out [rows][P] = scale * (W x + bias), for W in blocks of R rows and one token panel x; `bias` may
// be nullptr.
template <int NV>
void project_panel(const float* weights, const float* bias, const float* x, int64_t width,
                   int64_t rows, float scale, float* out) {
  for_chains(width, [&](int64_t k, int64_t steps, bool first_chain, bool last_chain) {
    for (int64_t first = 0; first < rows; first += kWeightRows) {
      const int64_t count = rows - first < kWeightRows ? rows - first : kWeightRows;
      // The next block of this chain, or the first one of the next chain, is fetched meanwhile.
      const int64_t after = first + kWeightRows < rows
                                ? (first + kWeightRows) * width + k * kWeightRows
                                : (k + steps) * kWeightRows;
      for_row_tiles<kWeightRows>(count, [&]<int MR>(int64_t i) {
        float* to = out + (first + i) * kPanel;
        const float* row_bias = bias == nullptr ? nullptr : bias + first + i;
        const float* a = weights + first * width + k * kWeightRows + i;
        tile<MR, NV>(1, steps, a, kWeightRows, OneSegment{x + k * kPanel}, kPanel,
                     weights + after + i, kWeightRows, [&](int r, int j, Vec c) {
                       float* at = to + r * kPanel + j * kLanes;
                       if (!first_chain) c = add(load(at), c);
                       if (last_chain && row_bias != nullptr) c = add(c, broadcast(row_bias[r]));
                       if (last_chain) c = mul(broadcast(scale), c);
                       store(at, c);
                     });
      });
    }
  });
}

// out [tokens][stride] = x^T W + bias, for one token panel x and W in column panels.
void project_columns(const float* x, int64_t tokens, const float* weights,
                     const ColumnPanels& panels, const float* bias, int64_t width, float* out,
                     int64_t stride) {
  for (int64_t panel = 0; panel < panels.panels; ++panel) {
    const int64_t column = panel * panels.width();
    const float* from = weights + column * width;
    for_vectors(panels.vectors_of(panel), [&]<int NV>() {
      for_chains(width, [&](int64_t k, int64_t steps, bool first_chain, bool last_chain) {
        for_row_tiles<kTileRows[NV]>(tokens, [&]<int MR>(int64_t i) {
          float* to = out + i * stride + column;
          // The next chain's weights, a line at each step of a tile until all are fetched.
          const int64_t line = i / MR * kLine;
          const bool fetches = line < panels.width();
          const float* ahead = fetches ? from + (k + steps) * panels.width() + line * steps : x;
          tile<MR, NV>(1, steps, x + k * kPanel + i, kPanel, OneSegment{from + k * panels.width()},
                       panels.width(), ahead, kLine, [&](int r, int j, Vec c) {
                         float* at = to + r * stride + j * kLanes;
                         if (!first_chain) c = add(load(at), c);
                         if (last_chain && bias != nullptr) {
                           c = add(c, load(bias + column + j * kLanes));
                         }
                         store(at, c);
                       });
        });
      });
    });
  }
}

void project_panels(const ProjectParams& p) {
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    for_vectors(vectors_of(panel_size(token, p.num_tokens)), [&]<int NV>() {
      project_panel<NV>(p.weights, p.bias, p.tokens + token * p.width, p.width, p.head_dim, p.scale,
                        p.out + token * p.head_dim);
    });
  }
}

void project_rows(const ProjectParams& p) {
  const ColumnPanels panels(p.head_dim);
  const int64_t stride = row_floats(p.head_dim);
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    project_columns(p.tokens + token * p.width, panel_size(token, p.num_tokens), p.weights, panels,
                    p.bias, p.width, p.out + token * stride, stride);
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
