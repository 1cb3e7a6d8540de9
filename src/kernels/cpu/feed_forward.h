#pragma once

#include "kernels/cpu/activation.h"
#include "kernels/cpu/kept_rows.h"
#include "kernels/cpu/sum_projections.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Packed weights of one block of neurons, in this order:
//   in, up   [ceil(block / R)][D][R]            blocks of R rows, transposed: operand A
//   out      [panels of D][block][panel width]  operand B
//   in_bias, up_bias [block rounded up to R]
// A layer without `up` has no room for it. Neurons beyond the last one of the layer are 0: every
// activation of 0 is 0.
struct PackedBlock {
  ColumnPanels out_panels;
  int64_t up, out, in_bias, up_bias, floats;  // offsets, and the total

  PackedBlock(int64_t width, int64_t block_size, bool gated) : out_panels(width) {
    const int64_t rows = ceil_div(block_size, kWeightRows) * kWeightRows;
    int64_t at = 0;
    const auto place = [&at](int64_t count) {
      const int64_t offset = at;
      at += ceil_div(count, 16) * 16;
      return offset;
    };
    place(rows * width);
    up = place(gated ? rows * width : 0);
    out = place(out_panels.panels * out_panels.width() * block_size);
    in_bias = place(rows);
    up_bias = place(gated ? rows : 0);
    floats = at;
  }
};

int64_t packed_block_floats(int64_t width, int64_t block_size, bool gated) {
  return PackedBlock(width, block_size, gated).floats;
}

int64_t packed_block_output(int64_t width, int64_t block_size, bool gated) {
  return PackedBlock(width, block_size, gated).out;
}

void pack_block(const PackBlockParams& p) {
  const bool gated = p.up != nullptr;
  const PackedBlock at(p.width, p.block_size, gated);
  const int64_t rows = ceil_div(p.block_size, kWeightRows) * kWeightRows;
  const auto pack_rows = [&](const float* w, float* out) {
    for (int64_t first = 0; first < rows; first += kWeightRows) {
      const auto row = [&](int64_t i) { return w + (first + i) * p.width; };
      pack_transposed(row, p.neurons - first, kWeightRows, p.width, out + first * p.width,
                      kWeightRows);
    }
  };
  pack_rows(p.in, p.packed);
  pack_bias(p.in_bias, p.neurons, rows, p.packed + at.in_bias);
  if (gated) {
    pack_rows(p.up, p.packed + at.up);
    pack_bias(p.up_bias, p.neurons, rows, p.packed + at.up_bias);
  }
  for (int64_t panel = 0; panel < at.out_panels.panels; ++panel) {
    const int64_t width = at.out_panels.width(), first = panel * width;
    const auto row = [&](int64_t i) { return p.out + (first + i) * p.out_stride; };
    float* out = p.packed + at.out + first * p.block_size;
    pack_transposed(row, p.width - first, width, p.neurons, out, width);
    for (int64_t i = p.neurons * width; i < p.block_size * width; ++i) out[i] = 0.0f;
  }
}

// Scratch: of one block what multiplies the activation, and rows that are kept.
int64_t hidden_scratch_floats(int64_t block_size) {
  return (block_size + row_floats(block_size)) * kPanel;
}

// hidden = scale * act(hidden) [* up], for `rows` rows of NV vectors.
template <Activation kind, int NV>
void activate_rows(float* hidden, const float* up, int64_t rows, float scale) {
  const Vec by = broadcast(scale);
  for (int64_t i = 0; i < rows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < NV; ++j) {
      const int64_t place = i * kPanel + j * kLanes;
      Vec value = activated<kind>(load(hidden + place)).value;
      if (up != nullptr) value = mul(value, load(up + place));
      store(hidden + place, mul(by, value));
    }
  }
}

void feed_forward_hidden(const HiddenParams& p) {
  const PackedBlock at(p.width, p.block_size, p.gated);
  for (int64_t i = 0; i < p.num_blocks; ++i) {
    const float* block = p.packed + p.block_index[i] * at.floats;
    for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
      const float* x = p.tokens + token * p.width;
      float* hidden = p.hidden + token / kPanel * p.hidden_stride + i * p.block_size * kPanel;
      for_vectors(vectors_of(panel_size(token, p.num_tokens)), [&]<int NV>() {
        project_panel<NV>(block, block + at.in_bias, x, p.width, p.block_size, 1.0f, hidden);
        if (p.gated) {
          project_panel<NV>(block + at.up, block + at.up_bias, x, p.width, p.block_size, 1.0f,
                            p.scratch);
        }
        if (p.kept.in != nullptr) {
          float* rows = p.scratch + p.block_size * kPanel;
          keep_panel(p, hidden, p.block_index[i], token, p.kept.in, rows);
          if (p.gated) keep_panel(p, p.scratch, p.block_index[i], token, p.kept.up, rows);
        }
        for_activation(p.activation, [&]<Activation kind>() {
          activate_rows<kind, NV>(hidden, p.gated ? p.scratch : nullptr, p.block_size, p.scale[i]);
        });
      });
    }
  }
}

void activate(Activation kind, const float* x, float* value, float* slope, int64_t count) {
  for_activation(kind, [&]<Activation k>() {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const Activated y = activated<k>(load(x + i));
      store(value + i, y.value);
      store(slope + i, y.slope);
    }
    if (i < count) {
      float in[kLanes], of_value[kLanes], of_slope[kLanes];
      const int64_t used = count - i;
      for (int64_t j = 0; j < kLanes; ++j) in[j] = j < used ? x[i + j] : 0.0f;
      const Activated y = activated<k>(load(in));
      store(of_value, y.value);
      store(of_slope, y.slope);
      for (int64_t j = 0; j < used; ++j) value[i + j] = of_value[j], slope[i + j] = of_slope[j];
    }
  });
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
