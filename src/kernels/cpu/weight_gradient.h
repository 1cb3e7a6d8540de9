#pragma once

#include "kernels/cpu/project.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Panels of columns of a weight's gradient that are summed up together: one block of rows serves
// them while it is in the second-level cache.
constexpr int64_t kGradientPanels = 4;

int64_t weight_gradient_scratch_floats(int64_t head_dim) {
  return kGradientPanels * head_dim * kPanel + kPanel * row_floats(head_dim);
}

// Sums of 16 rows, of 16 such sums, and of those: a running sum that only grows would lose digits
// that PyTorch's keeps.
void bias_gradient(const WeightGradientParams& p) {
  constexpr int64_t kSmall = 16;
  const int64_t stride = row_floats(p.head_dim);
  for (int64_t d = 0; d < stride; d += kLanes) {
    Vec total = zero();
    for_chains(p.num_samples * p.num_tokens, [&](int64_t k, int64_t steps, bool, bool) {
      Vec sum = zero();
      for (int64_t first = k; first < k + steps; first += kSmall) {
        const int64_t end = first + kSmall < k + steps ? first + kSmall : k + steps;
        Vec small = zero();
        for (int64_t i = first; i < end; ++i) small = add(small, load(p.rows + i * stride + d));
        sum = add(sum, small);
      }
      total = add(total, sum);
    });
    float lanes[kLanes];
    store(lanes, total);
    for (int64_t i = 0; i < kLanes && d + i < p.head_dim; ++i) {
      p.bias[d + i] = p.add ? p.bias[d + i] + lanes[i] : lanes[i];
    }
  }
}

// to [count] (+)= from
HEADKIT_INLINE void write(const float* from, int64_t count, bool add_to, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = add_to ? to[i] + from[i] : from[i];
}

void write_gradient_panel(const WeightGradientParams& p, const float* sum, int64_t panel_width,
                          int64_t column, float* scratch) {
  const int64_t used = p.width - column < panel_width ? p.width - column : panel_width;
  if (!p.transposed) {
    for (int64_t d = 0; d < p.head_dim; ++d) {
      write(sum + d * panel_width, used, p.add, p.out + d * p.out_stride + column);
    }
    return;
  }
  const int64_t stride = row_floats(p.head_dim);
  pack_transposed([sum, panel_width](int64_t d) { return sum + d * panel_width; }, p.head_dim,
                  stride, used, scratch, stride);
  for (int64_t j = 0; j < used; ++j) {
    write(scratch + j * stride, p.head_dim, p.add, p.out + (column + j) * p.out_stride);
  }
}

void weight_gradient(const WeightGradientParams& p) {
  const ColumnPanels panels(p.width);
  const int64_t width = panels.width(), stride = row_floats(p.head_dim);
  const int64_t sum_floats = p.head_dim * width;
  const int64_t group = p.num_tokens < kChain ? kChain / p.num_tokens : 1;
  const int64_t end = panels.panels * (p.part + 1) / p.parts;
  // One chain is the whole sum: it needs no place to grow in.
  const bool straight = !p.transposed && !p.add && p.num_samples <= group && p.num_tokens <= kChain;
  const auto writes_out = [&](int64_t panel) {
    return straight && panel * width + panels.vectors_of(panel) * kLanes <= p.width;
  };
  if (p.bias != nullptr && p.part == 0) bias_gradient(p);
  for (int64_t begin = panels.panels * p.part / p.parts; begin < end; begin += kGradientPanels) {
    const int64_t together = end - begin < kGradientPanels ? end - begin : kGradientPanels;
    for (int64_t s = 0; s < p.num_samples; s += group) {
      const int64_t samples = p.num_samples - s < group ? p.num_samples - s : group;
      for_chains(p.num_tokens, [&](int64_t k, int64_t steps, bool first_chain, bool) {
        const bool opens = s == 0 && first_chain;
        const float* rows = p.rows + (s * p.num_tokens + k) * stride;
        for (int64_t i = 0; i < together; ++i) {
          const int64_t column = (begin + i) * width;
          const auto b_of = [&](int64_t segment) {
            return p.columns + p.sample_index[s + segment] * p.sample_stride +
                   column * p.num_tokens + k * width;
          };
          const bool out = writes_out(begin + i);
          float* sum = out ? p.out + column : p.scratch + i * sum_floats;
          const int64_t sum_stride = out ? p.out_stride : width;
          for_vectors(panels.vectors_of(begin + i), [&]<int NV>() {
            for_row_tiles<kTileRows[NV]>(p.head_dim, [&]<int MR>(int64_t d) {
              float* to = sum + d * sum_stride;
              const float* a = rows + d;
              tile<MR, NV>(samples, steps, a, stride, b_of, width, a + kAhead * stride, stride,
                           [&](int r, int j, Vec c) {
                             float* at = to + r * sum_stride + j * kLanes;
                             store(at, opens ? c : add(load(at), c));
                             // The same row of the next panel, which waits in memory.
                             if (out) __builtin_prefetch(at + width, 1);
                           });
            });
          });
        }
      });
    }
    for (int64_t i = 0; i < together; ++i) {
      if (writes_out(begin + i)) continue;
      write_gradient_panel(p, p.scratch + i * sum_floats, width, (begin + i) * width,
                           p.scratch + kGradientPanels * p.head_dim * kPanel);
    }
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
