#include <algorithm>

#include "cpp/kernels/kernel_problem.h"

namespace headkit::kernels {
namespace {

class AttendTest : public LevelTest {
 protected:
  void expect_contexts(Problem p) {
    SCOPED_TRACE(testing::Message()
                 << p.tokens << " tokens, " << p.keys.size() << " keys, width " << p.width
                 << ", head size " << p.head_dim << (p.causal ? ", causal" : "") << ", window "
                 << p.window << ", offset " << p.query_offset << (p.attn_bias ? ", biased" : ""));
    const Floats context = run_pairs(table(), p, pack_heads(table(), p));
    const int64_t P = table().panel, n = static_cast<int64_t>(p.open.size());
    for (int64_t place = 0; place < n; ++place) {
      std::vector<float> found;
      for (int64_t t = 0; t < p.tokens; ++t) {
        for (int64_t d = 0; d < p.head_dim; ++d) {
          found.push_back(context[(t / P * n + place) * p.head_dim * P + d * P + t % P]);
        }
      }
      expect_accurate(found, plain_context<float>(p, place), plain_context<double>(p, place));
    }
  }
};

TEST_P(AttendTest, AgreesWithFloat64OnAwkwardSizes) {
  for (const int64_t tokens : {1, 2, 7, 16, 33, 49, 97}) {
    for (const int64_t head_dim : {1, 5, 8, 24, 32, 64, 80}) {
      Problem p{.tokens = tokens, .width = 19, .heads = 2, .head_dim = head_dim};
      p.fill(tokens * 100 + head_dim);
      expect_contexts(p);
    }
  }
}

TEST_P(AttendTest, RunsOverSeveralBlocksOfKeys) {
  for (const bool causal : {false, true}) {
    Problem p{.tokens = 1201, .width = 9, .heads = 1, .head_dim = 8, .causal = causal};
    p.fill(5);
    // The largest score comes late, so that earlier blocks must be rescaled.
    for (int64_t i = 0; i < p.width; ++i) p.x[1100 * p.width + i] *= 5.0f;
    expect_contexts(p);
  }
}

TEST_P(AttendTest, LeavesOutKeys) {
  for (const bool causal : {false, true}) {
    for (const int64_t tokens : {3, 40, 101}) {
      Problem padded{.tokens = tokens, .width = 12, .heads = 1, .head_dim = 5, .causal = causal};
      for (int32_t t = 0; t < tokens / 2 + 1; ++t) padded.keys.push_back(t);
      padded.fill(6);
      expect_contexts(padded);
      Problem holes{.tokens = tokens, .width = 12, .heads = 1, .head_dim = 5, .causal = causal};
      for (int32_t t = 2; t < tokens; t += 1 + t % 3) holes.keys.push_back(t);
      holes.fill(7);
      expect_contexts(holes);
    }
  }
}

TEST_P(AttendTest, KnowsWindowsOffsetsAndBiases) {
  for (const int64_t tokens : {1, 5, 50, 331}) {
    for (const bool causal : {false, true}) {
      for (const int64_t window : {0, 1, 4, 60}) {
        for (const int64_t offset : {0, -3, 7}) {
          for (const bool attn_bias : {false, true}) {
            Problem p{.tokens = tokens, .width = 9, .heads = 1, .head_dim = 6, .causal = causal};
            p.window = window, p.query_offset = offset, p.attn_bias = attn_bias;
            if (offset < 0) {
              for (int32_t t = 0; t < tokens; t += 1 + t % 2) p.keys.push_back(t);
            }
            p.fill(tokens);
            expect_contexts(p);
          }
        }
      }
    }
  }
}

TEST_P(AttendTest, KeepsTheSoftmaxAndTheContextBeforeTheGate) {
  Problem p{.tokens = 301, .width = 9, .heads = 1, .head_dim = 6, .causal = true};
  p.window = 40, p.query_offset = -2;  // the first two queries see nothing
  p.fill(3);
  const PackedLayer packed = pack_heads(table(), p);
  const Floats tokens = pack_tokens(table(), p);
  const HeadOperands operands = project(table(), p, packed, tokens, tokens, 0);
  Floats context(panel_floats(table(), p.tokens, p.head_dim)), own_context(context.size());
  Floats softmax(panel_floats(table(), p.tokens, 2));
  Floats scratch(table().attend_scratch_floats(p.tokens));
  table().attend({.q = operands.q.data(),
                  .k = operands.k.data(),
                  .v = operands.v.data(),
                  .context = context.data(),
                  .own_context = own_context.data(),
                  .softmax = softmax.data(),
                  .scratch = scratch.data(),
                  .scores = p.scores(),
                  .num_tokens = p.tokens,
                  .num_keys = p.tokens,
                  .head_dim = p.head_dim,
                  .v_stride = row_floats(table(), p.head_dim),
                  .context_stride = p.head_dim * table().panel,
                  .gate = 0.5f});
  ASSERT_TRUE(softmax.intact() && own_context.intact());
  const auto value = [&](const Floats& panels, int64_t t, int64_t d) {
    const int64_t P = table().panel;
    return double(panels[t / P * P * p.head_dim + d * P + t % P]);
  };
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t d = 0; d < p.head_dim; ++d) {
      EXPECT_EQ(value(context, t, d), 0.5 * value(own_context, t, d)) << t;
    }
    double sum = 0.0, largest = -std::numeric_limits<double>::infinity();
    for (int64_t s = 0; s < p.tokens; ++s) {
      double score = 0.0;
      for (int64_t d = 0; d < p.head_dim; ++d) {
        score += value(operands.q, t, d) * value(operands.k, s, d);
      }
      if (!p.sees(t, s)) continue;
      sum += std::exp(score);
      largest = std::max(largest, score);
    }
    const int64_t P = table().panel, at = t / P * 2 * P + t % P;
    if (sum == 0.0) {
      EXPECT_EQ(softmax[at], -std::numeric_limits<float>::infinity()) << t;
      EXPECT_EQ(softmax[at + P], 0.0f) << t;
    } else {
      EXPECT_NEAR(softmax[at], largest, 1e-5) << t;
      EXPECT_NEAR(softmax[at] + std::log(softmax[at + P]), std::log(sum), 1e-5) << t;
    }
  }
}

TEST_P(AttendTest, WorksWithoutBiasAndScalesByTheGate) {
  Problem p{.tokens = 20, .width = 16, .heads = 3, .head_dim = 16, .bias = false};
  p.open = {0, 2};
  p.gates = {0.25f, -3.0f};
  p.fill(8);
  expect_contexts(p);
}

TEST_P(AttendTest, SurvivesScoresFarApart) {
  Problem p{.tokens = 37, .width = 10, .heads = 1, .head_dim = 6};
  p.fill(9);
  for (float& value : p.q) value *= 60.0f;
  const Floats context = run_pairs(table(), p, pack_heads(table(), p));
  const std::vector<double> exact = plain_context<double>(p, 0);
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t d = 0; d < p.head_dim; ++d) {
      const float found = context[t / table().panel * p.head_dim * table().panel +
                                  d * table().panel + t % table().panel];
      ASSERT_NEAR(found, exact[t * p.head_dim + d], 2e-3);
    }
  }
}

// What right-padding means: the same keys, more queries.
TEST_P(AttendTest, PaddingDoesNotChangeABit) {
  for (const bool causal : {false, true}) {
    Problem p{.tokens = 61, .width = 33, .heads = 1, .head_dim = 20, .causal = causal};
    p.fill(10);
    Problem longer = p;
    longer.tokens = 150;
    longer.x.resize(longer.tokens * p.width, 0.5f);
    const Floats short_context = run_pairs(table(), p, pack_heads(table(), p));
    const Floats long_context = run_pairs(table(), longer, pack_heads(table(), longer));
    for (int64_t t = 0; t < p.tokens; ++t) {
      for (int64_t d = 0; d < p.head_dim; ++d) {
        const int64_t at =
            t / table().panel * p.head_dim * table().panel + d * table().panel + t % table().panel;
        ASSERT_EQ(short_context[at], long_context[at]) << "token " << t;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, AttendTest, every_level(), level_name);

}  // namespace
}  // namespace headkit::kernels
