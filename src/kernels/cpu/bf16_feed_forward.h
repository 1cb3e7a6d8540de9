#pragma once

#include "kernels/cpu/activation.h"
#include "kernels/cpu/bf16_project.h"
#include "kernels/cpu/kept_rows.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Packed weights of one block of neurons, as PackedBlock of feed_forward.h with pairs for floats;
// biases are float32.
struct PackedPairBlock {
  int64_t up, out, in_bias, up_bias, pairs;  // offsets, and the total

  PackedPairBlock(int64_t width, int64_t block_size, bool gated) {
    const int64_t rows = ceil_div(block_size, kWeightRows) * kWeightRows;
    const int64_t input = ceil_div(block_pairs(block_size, width), 16) * 16;
    const int64_t bias = ceil_div(rows, 16) * 16;
    up = input;
    out = up + (gated ? input : 0);
    in_bias = out + ceil_div(column_panel_pairs(width, block_size), 16) * 16;
    up_bias = in_bias + bias;
    pairs = up_bias + (gated ? bias : 0);
  }
};

int64_t packed_pair_block(int64_t width, int64_t block_size, bool gated) {
  return PackedPairBlock(width, block_size, gated).pairs;
}

int64_t packed_pair_block_output(int64_t width, int64_t block_size, bool gated) {
  return PackedPairBlock(width, block_size, gated).out;
}

void pack_pair_block(const Bf16PackBlockParams& p) {
  const bool gated = p.up != nullptr;
  const PackedPairBlock at(p.width, p.block_size, gated);
  const int64_t rows = ceil_div(p.block_size, kWeightRows) * kWeightRows;
  // Neurons beyond the last one of the layer.
  for (int64_t i = 0; i < at.in_bias; ++i) p.packed[i] = 0;
  const auto pack_input = [&](const Bf16* w, const float* bias, int64_t to, int64_t bias_to) {
    pack_pair_blocks({.from = w,
                      .packed = p.packed + to,
                      .stride = p.width,
                      .count = p.neurons,
                      .depth = p.width});
    pack_bias(bias, p.neurons, rows, reinterpret_cast<float*>(p.packed + bias_to));
  };
  pack_input(p.in, p.in_bias, 0, at.in_bias);
  if (gated) pack_input(p.up, p.up_bias, at.up, at.up_bias);
  const ColumnPanels panels(p.width);
  for (int64_t panel = 0; panel < panels.panels; ++panel) {
    const int64_t first = panel * panels.width();
    const auto row = [&](int64_t i) { return p.out + (first + i) * p.out_stride; };
    pack_pairs(row, p.width - first, panels.width(), panels.width(), p.neurons,
               p.packed + at.out + first * pairs_of(p.block_size));
  }
}

// Scratch: inputs of the activation, what multiplies it, and rows that are kept.
int64_t pair_hidden_scratch_floats(int64_t block_size) {
  return (2 * block_size + row_floats(block_size)) * kPanel;
}

// hidden [ceil(rows / 2)][P] = scale * act(in) [* up], for `rows` rows of NV vectors.
template <Activation kind, int NV>
void activate_pairs(const float* in, const float* up, int64_t rows, float scale, Bf16Pair* hidden) {
  const Vec by = broadcast(scale);
  const auto value = [&](int64_t place) {
    Vec y = activated<kind>(load(in + place)).value;
    if (up != nullptr) y = mul(y, load(up + place));
    return mul(by, y);
  };
  for (int64_t i = 0; i < rows; i += 2) {
#pragma GCC unroll 3
    for (int j = 0; j < NV; ++j) {
      const int64_t place = i * kPanel + j * kLanes;
      const Vec second = i + 1 < rows ? value(place + kPanel) : zero();
      store(hidden + i / 2 * kPanel + j * kLanes, round_pairs(value(place), second));
    }
  }
}

void feed_forward_hidden_pairs(const Bf16HiddenParams& p) {
  const PackedPairBlock at(p.width, p.block_size, p.gated);
  const int64_t depth = pairs_of(p.width);
  float* in = p.scratch;
  float* up = p.gated ? in + p.block_size * kPanel : nullptr;
  float* rows = in + 2 * p.block_size * kPanel;
  for (int64_t i = 0; i < p.num_blocks; ++i) {
    const Bf16Pair* block = p.packed + p.block_index[i] * at.pairs;
    const auto bias = [block](int64_t place) {
      return reinterpret_cast<const float*>(block + place);
    };
    for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
      const Bf16Pair* x = p.tokens + token * depth;
      Bf16Pair* hidden =
          p.hidden + token / kPanel * p.hidden_stride + i * pairs_of(p.block_size) * kPanel;
      for_vectors(vectors_of(panel_size(token, p.num_tokens)), [&]<int NV>() {
        project_pair_panel<NV>(block, bias(at.in_bias), x, depth, p.block_size, 1.0f, nullptr, in);
        if (p.gated) {
          project_pair_panel<NV>(block + at.up, bias(at.up_bias), x, depth, p.block_size, 1.0f,
                                 nullptr, up);
        }
        if (p.kept.in != nullptr) {
          keep_panel(p, in, p.block_index[i], token, p.kept.in, rows);
          if (p.gated) keep_panel(p, up, p.block_index[i], token, p.kept.up, rows);
        }
        for_activation(p.activation, [&]<Activation kind>() {
          activate_pairs<kind, NV>(in, up, p.block_size, p.scale[i], hidden);
        });
      });
    }
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
