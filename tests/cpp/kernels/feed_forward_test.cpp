#include "cpp/kernels/feed_forward_problem.h"

namespace headkit::kernels {
namespace {

using FeedForwardTest = LevelTest;

TEST_P(FeedForwardTest, AgreesWithFloat64OverAnyListOfBlocks) {
  const std::vector<std::vector<int32_t>> lists = {{0}, {3}, {1, 3}, {0, 1, 2, 3}};
  for (const auto& open : lists) {
    for (const int64_t tokens : {1, 7, 50, 97}) {
      for (const int64_t width : {1, 5, 77, 96}) {
        FeedForwardProblem p{.tokens = tokens, .width = width, .neurons = 100, .open = open};
        p.kind = kActivations[(tokens + width) % 4];
        p.gated = tokens % 2 == 0 || width == 77;
        p.fill(tokens + 1000 * width);
        p.scale.assign(open.size(), 0.75f);
        SCOPED_TRACE(testing::Message() << open.size() << " blocks, " << tokens << " x " << width);
        expect_accurate(run_feed_forward(table(), p), plain_feed_forward<float>(p),
                        plain_feed_forward<double>(p));
      }
    }
  }
}

TEST_P(FeedForwardTest, EveryActivationOverManySteps) {
  for (const Activation kind : kActivations) {
    for (const bool gated : {false, true}) {
      FeedForwardProblem p{.tokens = 20, .width = 300, .neurons = 330, .block_size = 30};
      p.kind = kind;
      p.gated = gated;
      p.bias = false;
      p.fill(5);
      SCOPED_TRACE(static_cast<int>(kind));
      expect_accurate(run_feed_forward(table(), p), plain_feed_forward<float>(p),
                      plain_feed_forward<double>(p));
    }
  }
}

TEST_P(FeedForwardTest, CutsOfBlocksAtChainsDoNotChangeABit) {
  for (const int64_t width : {37, 64}) {
    FeedForwardProblem p{.tokens = 60, .width = width, .neurons = 700};
    p.fill(6);
    const std::vector<float> whole = run_feed_forward(table(), p);
    EXPECT_EQ(run_feed_forward(table(), p, 8), whole);
    EXPECT_EQ(run_feed_forward(table(), p, 16, 3), whole);
  }
}

TEST_P(FeedForwardTest, RowsDoNotDependOnTheOthers) {
  FeedForwardProblem p{.tokens = 100, .width = 40, .neurons = 64};
  p.fill(7);
  const std::vector<float> all = run_feed_forward(table(), p);
  for (const int64_t first : {0, 1, 50}) {
    FeedForwardProblem cut = p;
    cut.tokens = 33;
    cut.x.assign(p.x.begin() + first * p.width, p.x.begin() + (first + 33) * p.width);
    const std::vector<float> part = run_feed_forward(table(), cut);
    for (size_t i = 0; i < part.size(); ++i) ASSERT_EQ(part[i], all[first * p.width + i]);
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, FeedForwardTest, every_level(), level_name);

}  // namespace
}  // namespace headkit::kernels
