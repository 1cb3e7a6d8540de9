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

/// The kernels of float32, and how they hold what a layer computes on. Those of bfloat16 have the
/// same names.
struct Float32Layer {
  using Value = float;
  using Sum = SumProjectionsParams;

  const KernelTable& table;

  const KernelTable& kernels() const { return table; }
  static const std::vector<float>& values(const std::vector<float>& floats) { return floats; }
  static int64_t depth(int64_t size) { return size; }
  static float* packed(Floats& floats) { return floats.data(); }
  static const float* packed(const Floats& floats) { return floats.data(); }
};

template <typename Layer>
Floats pack_blocks(const Layer& layer, const FeedForwardProblem& p) {
  const int64_t size = layer.kernels().packed_block_floats(p.width, p.block_size, p.gated);
  const auto at = [](const auto& values, int64_t place) {
    return values.empty() ? nullptr : values.data() + place;
  };
  const auto &in = layer.values(p.in), &up = layer.values(p.up), &out = layer.values(p.out);
  Floats packed(p.blocks() * size);
  for (int64_t block = 0; block < p.blocks(); ++block) {
    const int64_t first = block * p.block_size;
    layer.kernels().pack_block({.in = in.data() + first * p.width,
                                .up = at(up, first * p.width),
                                .out = out.data() + first,
                                .in_bias = at(p.in_bias, first),
                                .up_bias = at(p.up_bias, first),
                                .packed = layer.packed(packed) + block * size,
                                .width = p.width,
                                .neurons = p.neurons_of(block),
                                .block_size = p.block_size,
                                .out_stride = p.neurons});
  }
  EXPECT_TRUE(packed.intact()) << "written beyond the packed weights";
  return packed;
}

template <typename Layer>
Floats pack_rows(const Layer& layer, const std::vector<float>& x, int64_t tokens, int64_t width) {
  const int64_t panel = layer.table.panel;
  const auto& rows = layer.values(x);
  Floats packed((tokens + panel - 1) / panel * panel * layer.depth(width));
  for (int64_t first = 0; first < tokens; first += panel) {
    layer.kernels().pack_tokens({.x = rows.data() + first * width,
                                 .rows = nullptr,
                                 .panel = layer.packed(packed) + first * layer.depth(width),
                                 .row_stride = width,
                                 .tokens = std::min(panel, tokens - first),
                                 .width = width});
  }
  EXPECT_TRUE(packed.intact()) << "written beyond the token panels";
  return packed;
}

/// The output, `chunk` blocks at a time (0 = all) and in `parts` parts of the columns.
template <typename Layer>
std::vector<typename Layer::Value> run_layer(const Layer& layer, const FeedForwardProblem& p,
                                             int64_t chunk = 0, int64_t parts = 1,
                                             const KeptRows& kept = {}) {
  using Value = typename Layer::Value;
  const auto& kernels = layer.kernels();
  const Floats packed = pack_blocks(layer, p);
  const Floats tokens = pack_rows(layer, p.x, p.tokens, p.width);
  const int64_t count = static_cast<int64_t>(p.open.size());
  const int64_t panel = layer.table.panel, panels = (p.tokens + panel - 1) / panel;
  std::vector<decltype(layer.packed(packed))> weights;
  for (const int32_t block : p.open) {
    weights.push_back(layer.packed(packed) +
                      block * kernels.packed_block_floats(p.width, p.block_size, p.gated) +
                      kernels.packed_block_output(p.width, p.block_size, p.gated));
  }
  if (chunk == 0) chunk = count;
  Floats start(p.width + layer.table.vector_length, 0.0f);
  std::copy(p.start.begin(), p.start.end(), start.data());
  const int64_t size = p.tokens * p.width;
  Floats y((size * sizeof(Value) + sizeof(float) - 1) / sizeof(float)), sums(size);
  Value* const out = reinterpret_cast<Value*>(y.data());
  for (int64_t first = 0; first < count; first += chunk) {
    const int64_t blocks = std::min(chunk, count - first);
    const int64_t stride = blocks * layer.depth(p.block_size) * panel;
    Floats hidden(panels * stride), scratch(kernels.hidden_scratch_floats(p.block_size));
    kernels.feed_forward_hidden({.tokens = layer.packed(tokens),
                                 .packed = layer.packed(packed),
                                 .block_index = p.open.data() + first,
                                 .scale = p.scale.data() + first,
                                 .hidden = layer.packed(hidden),
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
      typename Layer::Sum sum{.context = layer.packed(hidden),
                              .weights = weights.data() + first,
                              .start = start.data(),
                              .out = out,
                              .num_segments = blocks,
                              .num_tokens = p.tokens,
                              .width = p.width,
                              .head_dim = p.block_size,
                              .context_stride = stride,
                              .part = part,
                              .parts = parts,
                              .add = first > 0,
                              .finish = first + blocks == count};
      if constexpr (requires { sum.sums; }) sum.sums = sums.data();
      kernels.sum_projections(sum);
    }
  }
  EXPECT_TRUE(y.intact() && sums.intact()) << "written beyond the output";
  return {out, out + size};
}

inline std::vector<float> run_feed_forward(const KernelTable& table, const FeedForwardProblem& p,
                                           int64_t chunk = 0, int64_t parts = 1,
                                           const KeptRows& kept = {}) {
  return run_layer(Float32Layer{table}, p, chunk, parts, kept);
}

}  // namespace headkit::kernels
