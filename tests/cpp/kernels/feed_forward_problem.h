#pragma once

#include <algorithm>
#include <vector>

#include "cpp/kernels/kernel_problem.h"
#include "cpp/kernels/plain_activation.h"

namespace headkit::kernels {

/// One feed-forward layer and the rows of one sample.
struct FeedForwardProblem {
  int64_t tokens = 1, width = 1, neurons = 1, block_size = 32;
  Activation kind = Activation::kGelu;
  bool gated = false;
  bool bias = true;
  std::vector<int32_t> open = {};  ///< blocks that run
  std::vector<float> scale = {};   ///< of the open blocks
  std::vector<float> x = {}, in = {}, up = {}, out = {}, in_bias = {}, up_bias = {}, start = {};

  int64_t blocks() const { return (neurons + block_size - 1) / block_size; }
  int64_t neurons_of(int64_t block) const {
    return std::min(block_size, neurons - block * block_size);
  }

  void fill(uint32_t seed) {
    const float spread = 1.0f / std::sqrt(static_cast<float>(width));
    x = random_floats(tokens * width, seed);
    in = random_floats(neurons * width, seed + 1, 2.0f * spread);
    out = random_floats(width * neurons, seed + 2, 1.0f / std::sqrt(static_cast<float>(neurons)));
    if (gated) up = random_floats(neurons * width, seed + 3, spread);
    if (bias) in_bias = random_floats(neurons, seed + 4);
    if (bias && gated) up_bias = random_floats(neurons, seed + 5);
    start = random_floats(width, seed + 6);
    if (open.empty()) {
      for (int32_t j = 0; j < blocks(); ++j) open.push_back(j);
    }
    if (scale.empty()) scale.assign(open.size(), 1.0f);
  }
};

/// Inputs of the activation and of what multiplies it, [tokens][neurons].
template <typename Number>
std::vector<Number> plain_projection(const FeedForwardProblem& p, const std::vector<float>& w,
                                     const std::vector<float>& bias) {
  std::vector<Number> result(p.tokens * p.neurons);
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t n = 0; n < p.neurons; ++n) {
      Number sum = bias.empty() ? Number(0) : Number(bias[n]);
      for (int64_t i = 0; i < p.width; ++i) {
        sum += Number(p.x[t * p.width + i]) * Number(w[n * p.width + i]);
      }
      result[t * p.neurons + n] = sum;
    }
  }
  return result;
}

/// start + sum over open blocks of scale * hidden W_out^T, [tokens][width].
template <typename Number>
std::vector<Number> plain_feed_forward(const FeedForwardProblem& p) {
  const std::vector<Number> in = plain_projection<Number>(p, p.in, p.in_bias);
  const std::vector<Number> up =
      p.gated ? plain_projection<Number>(p, p.up, p.up_bias) : std::vector<Number>();
  std::vector<Number> y(p.tokens * p.width);
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t i = 0; i < p.width; ++i) y[t * p.width + i] = Number(p.start[i]);
    for (size_t place = 0; place < p.open.size(); ++place) {
      const int64_t first = p.open[place] * p.block_size;
      for (int64_t n = first; n < first + p.neurons_of(p.open[place]); ++n) {
        Number hidden = plain_activation<Number>(p.kind, in[t * p.neurons + n]);
        if (p.gated) hidden *= up[t * p.neurons + n];
        hidden *= Number(p.scale[place]);
        for (int64_t i = 0; i < p.width; ++i) {
          y[t * p.width + i] += hidden * Number(p.out[i * p.neurons + n]);
        }
      }
    }
  }
  return y;
}

inline Floats pack_blocks(const KernelTable& table, const FeedForwardProblem& p) {
  const int64_t floats = table.packed_block_floats(p.width, p.block_size, p.gated);
  const auto at = [](const std::vector<float>& values, int64_t place) {
    return values.empty() ? nullptr : values.data() + place;
  };
  Floats packed(p.blocks() * floats);
  for (int64_t block = 0; block < p.blocks(); ++block) {
    const int64_t first = block * p.block_size;
    table.pack_block({.in = p.in.data() + first * p.width,
                      .up = at(p.up, first * p.width),
                      .out = p.out.data() + first,
                      .in_bias = at(p.in_bias, first),
                      .up_bias = at(p.up_bias, first),
                      .packed = packed.data() + block * floats,
                      .width = p.width,
                      .neurons = p.neurons_of(block),
                      .block_size = p.block_size,
                      .out_stride = p.neurons});
  }
  EXPECT_TRUE(packed.intact()) << "written beyond the packed weights";
  return packed;
}

inline Floats pack_rows(const KernelTable& table, const std::vector<float>& x, int64_t tokens,
                        int64_t width) {
  Floats packed((tokens + table.panel - 1) / table.panel * table.panel * width);
  for (int64_t first = 0; first < tokens; first += table.panel) {
    table.pack_tokens({.x = x.data() + first * width,
                       .rows = nullptr,
                       .panel = packed.data() + first * width,
                       .row_stride = width,
                       .tokens = std::min(table.panel, tokens - first),
                       .width = width});
  }
  return packed;
}

/// The output, `chunk` blocks at a time (0 = all) and in `parts` parts of the columns.
inline std::vector<float> run_feed_forward(const KernelTable& table, const FeedForwardProblem& p,
                                           int64_t chunk = 0, int64_t parts = 1,
                                           const KeptRows& kept = {}) {
  const Floats packed = pack_blocks(table, p);
  const Floats tokens = pack_rows(table, p.x, p.tokens, p.width);
  const int64_t count = static_cast<int64_t>(p.open.size());
  const int64_t panels = (p.tokens + table.panel - 1) / table.panel;
  std::vector<const float*> weights;
  for (const int32_t block : p.open) {
    weights.push_back(packed.data() +
                      block * table.packed_block_floats(p.width, p.block_size, p.gated) +
                      table.packed_block_output(p.width, p.block_size, p.gated));
  }
  if (chunk == 0) chunk = count;
  Floats start(p.width + table.vector_length, 0.0f);
  for (int64_t i = 0; i < p.width; ++i) start[i] = p.start[i];
  Floats y(p.tokens * p.width);
  for (int64_t first = 0; first < count; first += chunk) {
    const int64_t blocks = std::min(chunk, count - first);
    const int64_t stride = blocks * p.block_size * table.panel;
    Floats hidden(panels * stride), scratch(table.hidden_scratch_floats(p.block_size));
    table.feed_forward_hidden({.tokens = tokens.data(),
                               .packed = packed.data(),
                               .block_index = p.open.data() + first,
                               .scale = p.scale.data() + first,
                               .hidden = hidden.data(),
                               .scratch = scratch.data(),
                               .num_blocks = blocks,
                               .num_tokens = p.tokens,
                               .width = p.width,
                               .block_size = p.block_size,
                               .hidden_stride = stride,
                               .activation = p.kind,
                               .gated = p.gated,
                               .kept = kept});
    EXPECT_TRUE(hidden.intact() && scratch.intact()) << "written beyond the hidden panels";
    for (int64_t part = 0; part < parts; ++part) {
      table.sum_projections({.context = hidden.data(),
                             .weights = weights.data() + first,
                             .start = start.data(),
                             .out = y.data(),
                             .num_segments = blocks,
                             .num_tokens = p.tokens,
                             .width = p.width,
                             .head_dim = p.block_size,
                             .context_stride = stride,
                             .part = part,
                             .parts = parts,
                             .add = first > 0,
                             .finish = first + blocks == count});
    }
  }
  EXPECT_TRUE(y.intact()) << "written beyond the output";
  return {y.data(), y.data() + y.size()};
}

}  // namespace headkit::kernels
