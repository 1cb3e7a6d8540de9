#pragma once

#include "kernels/cpu/feed_forward.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Scratch: of one block what multiplies the activation and dOut W_out, of all the gated hidden
// values, each [neurons][P] of one token panel.
int64_t hidden_backward_scratch_floats(int64_t num_blocks, int64_t block_size) {
  return (2 + num_blocks) * block_size * kPanel;
}

// What one block does between its products.
struct BlockBackward {
  const float* up;  // of no gated layer nullptr, as d_up
  const float* u;   // dOut W_out
  float* d_in;      // holds the input of the activation, becomes its gradient
  float* d_up;
  float* hidden;  // scale * hidden
  float* gate_sums;
};

template <Activation kind, int NV>
void block_backward(const BlockBackward& b, int64_t rows, float scale) {
  const Vec by = broadcast(scale);
  Vec sums[NV];
  for (Vec& sum : sums) sum = zero();
  for (int64_t i = 0; i < rows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < NV; ++j) {
      const int64_t place = i * kPanel + j * kLanes;
      const Activated y = activated<kind>(load(b.d_in + place));
      const Vec u = load(b.u + place);
      Vec value = y.value, gradient = mul(by, u);
      if (b.up != nullptr) {
        const Vec up = load(b.up + place);
        store(b.d_up + place, mul(gradient, value));
        value = mul(value, up);
        gradient = mul(gradient, up);
      }
      sums[j] = fma(u, value, sums[j]);
      store(b.hidden + place, mul(by, value));
      store(b.d_in + place, mul(gradient, y.slope));
    }
  }
  for (int j = 0; j < NV; ++j) store(b.gate_sums + j * kLanes, sums[j]);
}

// The reverse of `keep_panel`.
HEADKIT_INLINE void restore_panel(const HiddenParams& p, float* from, int64_t block, int64_t token,
                                  float* panel) {
  const int64_t neurons = kept_neurons(p, block), count = panel_size(token, p.num_tokens);
  const auto row = [&](int64_t t) {
    return kept_row(p.kept, from, token + t) + block * p.block_size;
  };
  pack_transposed(row, count, vectors_of(count) * kLanes, neurons, panel, kPanel);
  for (int64_t i = neurons * kPanel; i < p.block_size * kPanel; ++i) panel[i] = 0.0f;
}

template <int NV>
void hidden_backward_panel(const HiddenBackwardParams& b, int64_t token) {
  const HiddenParams& p = b.forward;
  const PackedBlock at(p.width, p.block_size, p.gated);
  const int64_t block_panel = p.block_size * kPanel, neurons = p.num_blocks * p.block_size;
  const int64_t out_floats = block_floats(p.block_size, p.width);
  const float* x = p.tokens + token * p.width;
  const float* dy = b.output_gradient + token * p.width;
  float* up = p.scratch;
  float* u = up + block_panel;
  float* hidden = u + block_panel;
  float* d_in = b.in_panels + token / kPanel * b.panel_stride;
  float* d_up = p.gated ? b.up_panels + token / kPanel * b.panel_stride : nullptr;
  for (int64_t i = 0; i < p.num_blocks; ++i) {
    const int64_t place = i * block_panel;
    if (p.kept.in != nullptr) {
      restore_panel(p, p.kept.in, p.block_index[i], token, d_in + place);
      if (p.gated) restore_panel(p, p.kept.up, p.block_index[i], token, up);
    } else {
      const float* block = p.packed + p.block_index[i] * at.floats;
      project_panel<NV>(block, block + at.in_bias, x, p.width, p.block_size, 1.0f, d_in + place);
      if (p.gated) {
        project_panel<NV>(block + at.up, block + at.up_bias, x, p.width, p.block_size, 1.0f, up);
      }
    }
    project_panel<NV>(b.out_blocks + p.block_index[i] * out_floats, nullptr, dy, p.width,
                      p.block_size, 1.0f, u);
    for_activation(p.activation, [&]<Activation kind>() {
      block_backward<kind, NV>({.up = p.gated ? up : nullptr,
                                .u = u,
                                .d_in = d_in + place,
                                .d_up = p.gated ? d_up + place : nullptr,
                                .hidden = hidden + place,
                                .gate_sums = b.gate_sums + i * b.gate_stride + token},
                               p.block_size, p.scale[i]);
    });
  }
  const int64_t count = panel_size(token, p.num_tokens), stride = row_floats(neurons);
  const auto to_rows = [&](const float* panel, float* rows) {
    pack_transposed([panel](int64_t n) { return panel + n * kPanel; }, neurons, stride, count,
                    rows + token * stride, stride);
  };
  to_rows(d_in, b.in_rows);
  if (p.gated) to_rows(d_up, b.up_rows);
  to_rows(hidden, b.hidden_rows);
}

void feed_forward_hidden_backward(const HiddenBackwardParams& b) {
  for (int64_t token = 0; token < b.forward.num_tokens; token += kPanel) {
    for_vectors(vectors_of(panel_size(token, b.forward.num_tokens)),
                [&]<int NV>() { hidden_backward_panel<NV>(b, token); });
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
