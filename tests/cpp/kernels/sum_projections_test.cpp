#include "cpp/kernels/kernel_problem.h"

namespace headkit::kernels {
namespace {

using SumProjectionsTest = LevelTest;

TEST_P(SumProjectionsTest, AgreesWithFloat64OverAnyListOfHeads) {
  const std::vector<std::vector<int32_t>> lists = {{0}, {4}, {1, 3}, {0, 2, 3, 4}, {0, 1, 2, 3, 4}};
  for (const auto& open : lists) {
    for (const int64_t tokens : {1, 2, 17, 50, 97}) {
      for (const int64_t width : {1, 5, 16, 47, 65, 96}) {
        Problem p{.tokens = tokens, .width = width, .heads = 5, .head_dim = 12, .open = open};
        p.gates.assign(open.size(), 0.5f);
        p.fill(tokens + 1000 * width);
        SCOPED_TRACE(testing::Message() << open.size() << " heads, " << tokens << " x " << width);
        expect_accurate(run_all(table(), p), plain_output<float>(p), plain_output<double>(p));
      }
    }
  }
}

TEST_P(SumProjectionsTest, WithoutHeadsWritesTheStart) {
  Problem p{.tokens = 21, .width = 37, .heads = 1, .head_dim = 4};
  p.fill(11);
  const PackedLayer packed = pack_heads(table(), p);
  p.open.clear();
  const std::vector<float> out = run_output(table(), p, packed, Floats(0));
  for (int64_t i = 0; i < p.tokens * p.width; ++i) ASSERT_EQ(out[i], p.start[i % p.width]);
}

TEST_P(SumProjectionsTest, PartsOfTheColumnsDoNotChangeABit) {
  for (const int64_t width : {5, 64, 131}) {
    Problem p{.tokens = 30, .width = width, .heads = 3, .head_dim = 7};
    p.fill(12);
    const std::vector<float> whole = run_all(table(), p);
    for (const int64_t parts : {2, 3, 16}) EXPECT_EQ(run_all(table(), p, parts), whole);
  }
}

TEST_P(SumProjectionsTest, RowsDoNotDependOnTheOthers) {
  Problem p{.tokens = 100, .width = 40, .heads = 2, .head_dim = 9};
  p.fill(13);
  for (int32_t t = 0; t < 60; ++t) p.keys.push_back(t);
  p.keys.resize(60);
  const std::vector<float> all = run_all(table(), p);
  Problem cut = p;
  cut.tokens = 60;
  cut.x.resize(60 * p.width);
  const std::vector<float> part = run_all(table(), cut);
  for (size_t i = 0; i < part.size(); ++i) ASSERT_EQ(part[i], all[i]);
}

INSTANTIATE_TEST_SUITE_P(Levels, SumProjectionsTest, every_level(), level_name);

}  // namespace
}  // namespace headkit::kernels
