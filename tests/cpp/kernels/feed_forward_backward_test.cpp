#include <type_traits>

#include "cpp/kernels/feed_forward_problem.h"

namespace headkit::kernels {
namespace {

using FeedForwardBackwardTest = LevelTest;

// Of one list of blocks: [tokens][list * block_size], but for the gates, [list][tokens].
template <typename Values>
struct HiddenGradients {
  Values in, up, hidden, gate;
};

template <typename Number>
HiddenGradients<std::vector<Number>> plain_gradients(const FeedForwardProblem& p,
                                                     const std::vector<float>& dy) {
  const std::vector<Number> before = plain_projection<Number>(p, p.in, p.in_bias);
  const std::vector<Number> up =
      p.gated ? plain_projection<Number>(p, p.up, p.up_bias) : std::vector<Number>();
  const auto blocks = static_cast<int64_t>(p.open.size());
  const int64_t row = blocks * p.block_size;
  HiddenGradients<std::vector<Number>> g;
  for (auto* values : {&g.in, &g.up, &g.hidden}) values->assign(p.tokens * row, Number(0));
  g.gate.assign(blocks * p.tokens, Number(0));
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t j = 0; j < blocks; ++j) {
      for (int64_t i = 0; i < p.neurons_of(p.open[j]); ++i) {
        const int64_t n = p.open[j] * p.block_size + i, place = t * row + j * p.block_size + i;
        Number u = 0;
        for (int64_t d = 0; d < p.width; ++d) {
          u += Number(dy[t * p.width + d]) * Number(p.out[d * p.neurons + n]);
        }
        const Number x = before[t * p.neurons + n];
        const Number value = plain_activation<Number>(p.kind, x);
        const Number beside = p.gated ? up[t * p.neurons + n] : Number(1);
        const Number scale = p.scale[j];
        g.gate[j * p.tokens + t] += u * value * beside;
        g.hidden[place] = scale * value * beside;
        g.up[place] = scale * u * value;
        g.in[place] = scale * u * beside * Number(plain_slope(p.kind, x));
      }
    }
  }
  return g;
}

HiddenGradients<std::vector<float>> run_gradients(const KernelTable& table,
                                                  const FeedForwardProblem& p,
                                                  const std::vector<float>& dy,
                                                  const KeptRows& kept = {}) {
  const Floats packed = pack_blocks(Float32Layer{table}, p);
  const Floats tokens = pack_rows(Float32Layer{table}, p.x, p.tokens, p.width);
  const Floats gradient = pack_rows(Float32Layer{table}, dy, p.tokens, p.width);
  const int64_t out_floats = table.block_floats(p.block_size, p.width);
  Floats out_blocks(p.blocks() * out_floats, 0.0f);
  for (int64_t block = 0; block < p.blocks(); ++block) {
    table.pack_blocks({.from = p.out.data() + block * p.block_size,
                       .packed = out_blocks.data() + block * out_floats,
                       .stride = p.neurons,
                       .count = p.neurons_of(block),
                       .depth = p.width,
                       .transposed = true});
  }
  const auto blocks = static_cast<int64_t>(p.open.size());
  const int64_t row = blocks * p.block_size;
  const int64_t stride =
      (row + table.vector_length - 1) / table.vector_length * table.vector_length;
  const int64_t panels = (p.tokens + table.panel - 1) / table.panel;
  const int64_t panel_stride = row * table.panel, gate_stride = panels * table.panel;
  Floats in_panels(panels * panel_stride), up_panels(panels * panel_stride);
  Floats in_rows(p.tokens * stride), up_rows(p.tokens * stride), hidden_rows(p.tokens * stride);
  Floats gate_sums(blocks * gate_stride);
  Floats scratch(table.hidden_backward_scratch_floats(blocks, p.block_size));
  table.feed_forward_hidden_backward(
      {.forward = {.tokens = tokens.data(),
                   .packed = kept.in == nullptr ? packed.data() : nullptr,
                   .block_index = p.open.data(),
                   .scale = p.scale.data(),
                   .hidden = nullptr,
                   .scratch = scratch.data(),
                   .num_blocks = blocks,
                   .num_tokens = p.tokens,
                   .width = p.width,
                   .block_size = p.block_size,
                   .hidden_stride = 0,
                   .activation = p.kind,
                   .gated = p.gated,
                   .kept = kept},
       .output_gradient = gradient.data(),
       .out_blocks = out_blocks.data(),
       .in_panels = in_panels.data(),
       .up_panels = p.gated ? up_panels.data() : nullptr,
       .in_rows = in_rows.data(),
       .up_rows = p.gated ? up_rows.data() : nullptr,
       .hidden_rows = hidden_rows.data(),
       .gate_sums = gate_sums.data(),
       .panel_stride = panel_stride,
       .gate_stride = gate_stride});
  for (const Floats* written :
       {&in_panels, &up_panels, &in_rows, &up_rows, &hidden_rows, &gate_sums, &scratch}) {
    EXPECT_TRUE(written->intact()) << "written beyond the end";
  }
  HiddenGradients<std::vector<float>> g;
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t i = 0; i < row; ++i) {
      const int64_t in_panel = t / table.panel * panel_stride + i * table.panel + t % table.panel;
      EXPECT_EQ(in_panels[in_panel], in_rows[t * stride + i]);
      g.in.push_back(in_rows[t * stride + i]);
      g.hidden.push_back(hidden_rows[t * stride + i]);
      if (!p.gated) continue;
      EXPECT_EQ(up_panels[in_panel], up_rows[t * stride + i]);
      g.up.push_back(up_rows[t * stride + i]);
    }
  }
  for (int64_t j = 0; j < blocks; ++j) {
    for (int64_t t = 0; t < p.tokens; ++t) g.gate.push_back(gate_sums[j * gate_stride + t]);
  }
  return g;
}

// Judged over all problems: the largest error of one small problem is luck.
TEST_P(FeedForwardBackwardTest, AgreesWithFloat64OverAnyListOfBlocks) {
  HiddenGradients<std::vector<float>> found, plain;
  HiddenGradients<std::vector<double>> exact;
  const auto append = [](auto& all, const auto& some) {
    for (const auto member :
         {&std::remove_cvref_t<decltype(all)>::in, &std::remove_cvref_t<decltype(all)>::up,
          &std::remove_cvref_t<decltype(all)>::hidden, &std::remove_cvref_t<decltype(all)>::gate}) {
      (all.*member).insert((all.*member).end(), (some.*member).begin(), (some.*member).end());
    }
  };
  for (const std::vector<int32_t>& open : {std::vector<int32_t>{3}, {0, 2}, {0, 1, 2, 3}}) {
    for (const int64_t tokens : {1, 7, 61}) {
      for (const bool gated : {false, true}) {
        for (const Activation kind : kActivations) {
          FeedForwardProblem p{
              .tokens = tokens, .width = 45, .neurons = 71, .block_size = 20, .open = open};
          p.kind = kind;
          p.gated = gated;
          p.scale.assign(open.size(), 0.75f);
          p.fill(tokens);
          const std::vector<float> dy = random_floats(tokens * p.width, 99);
          append(found, run_gradients(table(), p, dy));
          HiddenGradients<std::vector<float>> of_plain = plain_gradients<float>(p, dy);
          HiddenGradients<std::vector<double>> of_exact = plain_gradients<double>(p, dy);
          if (!gated) of_plain.up.clear(), of_exact.up.clear();
          append(plain, of_plain);
          append(exact, of_exact);
        }
      }
    }
  }
  expect_accurate(found.in, plain.in, exact.in);
  expect_accurate(found.up, plain.up, exact.up);
  expect_accurate(found.hidden, plain.hidden, exact.hidden);
  expect_accurate(found.gate, plain.gate, exact.gate);
}

TEST_P(FeedForwardBackwardTest, FromKeptRowsGivesTheSameBits) {
  for (const bool gated : {false, true}) {
    for (const bool scattered : {false, true}) {
      FeedForwardProblem p{
          .tokens = 61, .width = 45, .neurons = 71, .block_size = 20, .open = {0, 3}};
      p.gated = gated;
      p.fill(3);
      const std::vector<float> dy = random_floats(p.tokens * p.width, 99);
      std::vector<int32_t> rows;
      for (int32_t t = 0; t < p.tokens; ++t) rows.push_back(p.tokens - 1 - t);
      const int64_t stride = (gated ? 2 : 1) * p.neurons;
      Floats room(p.tokens * stride);
      const KeptRows kept{.in = room.data(),
                          .up = gated ? room.data() + p.neurons : nullptr,
                          .rows = scattered ? rows.data() : nullptr,
                          .stride = stride,
                          .neurons = p.neurons};
      EXPECT_EQ(run_feed_forward(table(), p, 0, 1, kept), run_feed_forward(table(), p));
      EXPECT_TRUE(room.intact()) << "written beyond the kept rows";
      const std::vector<float> before = plain_projection<float>(p, p.in, p.in_bias);
      for (int64_t t = 0; t < p.tokens; ++t) {
        const int64_t row = scattered ? rows[t] : t;
        EXPECT_NEAR(room[row * stride + 70], before[t * p.neurons + 70], 1e-4);
        EXPECT_TRUE(std::isnan(room[row * stride + 25])) << "a closed block was written";
      }
      const auto found = run_gradients(table(), p, dy, kept);
      const auto computed = run_gradients(table(), p, dy);
      EXPECT_EQ(found.in, computed.in);
      EXPECT_EQ(found.up, computed.up);
      EXPECT_EQ(found.hidden, computed.hidden);
      EXPECT_EQ(found.gate, computed.gate);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, FeedForwardBackwardTest, every_level(), level_name);

}  // namespace
}  // namespace headkit::kernels
