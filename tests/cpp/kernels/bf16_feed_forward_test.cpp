#include "cpp/kernels/bf16_values.h"
#include "cpp/kernels/feed_forward_problem.h"

namespace headkit::kernels {
namespace {

/// `p` with every value as bfloat16 holds it.
FeedForwardProblem narrowed(FeedForwardProblem p) {
  for (auto* values : {&p.x, &p.in, &p.up, &p.out, &p.in_bias, &p.up_bias, &p.start}) {
    for (float& value : *values) value = from_bf16(to_bf16(value));
  }
  return p;
}

/// plain_feed_forward, but rounded to bfloat16 wherever operators on bfloat16 tensors round.
std::vector<float> dense_feed_forward(const FeedForwardProblem& p) {
  const std::vector<double> in = plain_projection<double>(p, p.in, p.in_bias);
  const std::vector<double> up =
      p.gated ? plain_projection<double>(p, p.up, p.up_bias) : std::vector<double>();
  std::vector<float> y(p.tokens * p.width);
  for (int64_t t = 0; t < p.tokens; ++t) {
    std::vector<double> row(p.start.begin(), p.start.end());
    for (size_t place = 0; place < p.open.size(); ++place) {
      const int64_t first = p.open[place] * p.block_size;
      for (int64_t n = first; n < first + p.neurons_of(p.open[place]); ++n) {
        double hidden = rounded(plain_activation<double>(p.kind, rounded(in[t * p.neurons + n])));
        if (p.gated) hidden = rounded(hidden * rounded(up[t * p.neurons + n]));
        hidden = rounded(hidden * p.scale[place]);
        for (int64_t i = 0; i < p.width; ++i) row[i] += hidden * p.out[i * p.neurons + n];
      }
    }
    for (int64_t i = 0; i < p.width; ++i) y[t * p.width + i] = static_cast<float>(rounded(row[i]));
  }
  return y;
}

struct Bf16Layer {
  using Value = Bf16;
  using Sum = Bf16SumProjectionsParams;

  const KernelTable& table;

  const Bf16Kernels& kernels() const { return *table.bf16; }
  static std::vector<Bf16> values(const std::vector<float>& floats) { return in_bf16(floats); }
  static int64_t depth(int64_t size) { return pairs_of(size); }
  static Bf16Pair* packed(Floats& floats) { return pairs(floats); }
  static const Bf16Pair* packed(const Floats& floats) { return pairs(floats); }
};

class Bf16FeedForwardTest : public LevelTest {
 protected:
  std::vector<Bf16> run(const FeedForwardProblem& p, int64_t chunk = 0, int64_t parts = 1,
                        const KeptRows& kept = {}) const {
    return run_layer(Bf16Layer{table()}, p, chunk, parts, kept);
  }

  void expect_output(FeedForwardProblem p, uint32_t seed) {
    SCOPED_TRACE(testing::Message() << p.tokens << " x " << p.width << ", " << p.neurons
                                    << " neurons in blocks of " << p.block_size);
    p.fill(seed);
    p = narrowed(p);
    const std::vector<double> exact = plain_feed_forward<double>(p);
    const std::vector<float> dense = dense_feed_forward(p);
    const std::vector<Bf16> found = run(p);
    double error = 0.0, dense_error = 0.0, largest = 0.0;
    for (size_t i = 0; i < exact.size(); ++i) {
      error = std::max(error, std::abs(from_bf16(found[i]) - exact[i]));
      dense_error = std::max(dense_error, std::abs(dense[i] - exact[i]));
      largest = std::max(largest, std::abs(exact[i]));
    }
    EXPECT_LE(error, 2.0 * dense_error + std::ldexp(largest, -6));
  }
};

TEST_P(Bf16FeedForwardTest, AgreesWithFloat64OverAnyListOfBlocks) {
  for (const std::vector<int32_t>& open : {std::vector<int32_t>{0}, {3}, {1, 3}, {0, 1, 2, 3}}) {
    for (const int64_t tokens : {1, 7, 50, 97}) {
      for (const int64_t width : {1, 5, 77, 96}) {
        FeedForwardProblem p{.tokens = tokens, .width = width, .neurons = 100, .open = open};
        p.kind = kActivations[(tokens + width) % 4];
        p.gated = tokens % 2 == 0 || width == 77;
        p.scale.assign(open.size(), 0.75f);
        expect_output(p, tokens + 1000 * width);
      }
    }
  }
}

TEST_P(Bf16FeedForwardTest, TakesBlocksOfAnySize) {
  for (const int64_t block_size : {1, 7, 16, 33, 300}) {
    for (const bool gated : {false, true}) {
      FeedForwardProblem p{.tokens = 20, .width = 31, .neurons = 67, .block_size = block_size};
      p.gated = gated;
      p.bias = gated;
      expect_output(p, 5);
    }
  }
}

TEST_P(Bf16FeedForwardTest, PartsOfTheColumnsDoNotChangeABitAndChunksOnlyTheSums) {
  FeedForwardProblem p{.tokens = 60, .width = 131, .neurons = 250, .block_size = 30};
  p.fill(6);
  p = narrowed(p);
  const std::vector<Bf16> whole = run(p), cut = run(p, 3);
  EXPECT_EQ(run(p, 0, 3), whole);
  EXPECT_EQ(run(p, 3, 2), cut);
  for (size_t i = 0; i < whole.size(); ++i) {
    ASSERT_NEAR(from_bf16(whole[i]), from_bf16(cut[i]),
                0.01 * std::abs(from_bf16(whole[i])) + 1e-3);
  }
}

TEST_P(Bf16FeedForwardTest, KeepsTheInputsOfTheActivation) {
  FeedForwardProblem p{.tokens = 50, .width = 24, .neurons = 70, .gated = true};
  p.fill(7);
  p = narrowed(p);
  std::vector<float> kept(p.tokens * 2 * p.neurons);
  run(p, 0, 1,
      {.in = kept.data(),
       .up = kept.data() + p.neurons,
       .rows = nullptr,
       .stride = 2 * p.neurons,
       .neurons = p.neurons});
  const std::vector<double> in = plain_projection<double>(p, p.in, p.in_bias);
  const std::vector<double> up = plain_projection<double>(p, p.up, p.up_bias);
  for (int64_t i = 0; i < p.tokens * p.neurons; ++i) {
    const int64_t at = i / p.neurons * 2 * p.neurons + i % p.neurons;
    ASSERT_NEAR(kept[at], in[i], 1e-5);
    ASSERT_NEAR(kept[at + p.neurons], up[i], 1e-5);
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Bf16FeedForwardTest);
INSTANTIATE_TEST_SUITE_P(Levels, Bf16FeedForwardTest, testing::ValuesIn(bf16_levels()), level_name);

}  // namespace
}  // namespace headkit::kernels
