#pragma once

#include "kernels/cpu/project.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Rows [first, first + count) of one panel of columns of the output; `first` is at the start of a
// token panel. A chain covers whole segments of head_dim steps as far as they fit into it. Floats
// [fetched, fetch_end) of p.next are fetched by tiles that have no weights to fetch.
template <int NV>
void output_panel(const SumProjectionsParams& p, int64_t panel_width, int64_t column, int64_t first,
                  int64_t count, float* out, int64_t stride, int64_t& fetched, int64_t fetch_end) {
  const int64_t segments = p.num_segments;
  const int64_t group = p.head_dim < kChain ? kChain / p.head_dim : 1;
  const float* start = p.start + column;
  for (int64_t s = 0; s < segments; s += group) {
    const int64_t in_chain = segments - s < group ? segments - s : group;
    for_chains(p.head_dim, [&](int64_t k, int64_t steps, bool first_chain, bool last_chain) {
      const bool opens = s == 0 && first_chain && !p.add;
      const bool closes = s + in_chain == segments && last_chain && p.finish;
      const bool packed = p.weight_stride == 0;
      const int64_t b_stride = packed ? panel_width : p.weight_stride;
      const int64_t b_offset = packed ? column * p.head_dim : column;
      const auto b_of = [&](int64_t i) { return p.weights[s + i] + b_offset + k * b_stride; };
      // While this chain runs, the weights of the next one come closer: a tile fetches a segment or
      // a part of it, or of matrices, which often follow each other in memory, one line of all
      // their rows.
      const bool next_panel = s + in_chain == segments;
      // What its rows of the next panel of columns will be written to comes closer as well.
      const bool fetches_rows = closes && column + panel_width < p.width;
      const int64_t next = next_panel ? 0 : s + in_chain;
      const int64_t next_column = column + (next_panel ? panel_width : 0);
      const int64_t ahead_stride = packed ? kLine : b_stride;
      const int64_t tile_steps = in_chain * steps;
      const int64_t parts = ceil_div(NV, in_chain);
      int64_t tiles = 0;
      for (int64_t token = 0; token < count; token += kPanel) {
        const int64_t left = count - token < kPanel ? count - token : kPanel;
        const float* context =
            p.context + (first + token) / kPanel * p.context_stride + (s * p.head_dim + k) * kPanel;
        for_row_tiles<kTileRows[NV]>(left, [&]<int MR>(int64_t i) {
          float* to = out + (token + i) * stride;
          const float* ahead = context;
          if (!packed && tiles * kLine < NV * kLanes) {
            ahead = p.weights[next] + next_column + tiles * kLine;
          } else if (packed && tiles < in_chain * parts && next + tiles / parts < segments) {
            ahead = p.weights[next + tiles / parts] + next_column * p.head_dim +
                    tiles % parts * tile_steps * kLine;
          } else if (packed && fetched < fetch_end) {
            ahead = p.next + fetched;
            fetched += tile_steps * kLine;
          }
          ++tiles;
          tile<MR, NV>(in_chain, steps, context + i, kPanel, b_of, b_stride, ahead, ahead_stride,
                       [&](int r, int j, Vec c) {
                         float* at = to + r * stride + j * kLanes;
                         if (!opens) c = add(load(at), c);
                         if (closes) c = add(c, load(start + j * kLanes));
                         store(at, c);
                         if (fetches_rows) __builtin_prefetch(at + panel_width, 1);
                       });
        });
      }
    });
  }
}

void sum_projections(const SumProjectionsParams& p) {
  if (p.num_segments == 0) {
    for (int64_t t = 0; t < p.num_tokens && p.part == 0; ++t) {
      for (int64_t i = 0; i < p.width; ++i) p.out[t * p.width + i] = p.start[i];
    }
    return;
  }
  const ColumnPanels panels(p.width);
  const int64_t begin = panels.panels * p.part / p.parts;
  const int64_t end = panels.panels * (p.part + 1) / p.parts;
  // Floats of `next` before a panel of columns: each fetches its share.
  const auto share = [&](int64_t panel) { return p.next_floats * panel / panels.panels; };
  int64_t fetched = share(begin);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t column = panel * panels.width();
    const int64_t vectors = panels.vectors_of(panel);
    const int64_t fetch_end = share(panel + 1);
    const int64_t left = p.width - column;
    if (left >= vectors * kLanes) {
      for_vectors(vectors, [&]<int NV>() {
        output_panel<NV>(p, panels.width(), column, 0, p.num_tokens, p.out + column, p.width,
                         fetched, fetch_end);
      });
      continue;
    }
    // The last columns of a width that is no multiple of VL go through a buffer: nothing is ever
    // written beyond the output.
    for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
      const int64_t count = p.num_tokens - token < kPanel ? p.num_tokens - token : kPanel;
      float buffer[kPanel * kPanel];
      for (int64_t i = 0; i < count && p.add; ++i) {
        for (int64_t j = 0; j < kPanel; ++j) {
          buffer[i * kPanel + j] = j < left ? p.out[(token + i) * p.width + column + j] : 0.0f;
        }
      }
      for_vectors(vectors, [&]<int NV>() {
        output_panel<NV>(p, panels.width(), column, token, count, buffer, kPanel, fetched,
                         fetch_end);
      });
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t j = 0; j < left; ++j) {
          p.out[(token + i) * p.width + column + j] = buffer[i * kPanel + j];
        }
      }
    }
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
