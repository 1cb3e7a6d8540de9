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

TEST_P(SumProjectionsTest, MatricesAsTheyAreGiveTheSameBits) {
  const int64_t tokens = 203, head_dim = 20, segments = 15, P = table().panel;
  const int64_t stride = segments * head_dim * P, panels = (tokens + P - 1) / P;
  for (const int64_t width : {16, 48, 112}) {
    const std::vector<float> all = random_floats(segments * head_dim * width, width);
    const std::vector<float> values = random_floats(panels * stride, 3);
    std::vector<Floats> packed;
    std::vector<const float*> in_panels, as_they_are;
    for (int64_t s = 0; s < segments; ++s) {
      as_they_are.push_back(all.data() + s * head_dim * width);
      packed.push_back(pack_column_panels(table(), {.from = as_they_are.back(),
                                                    .packed = nullptr,
                                                    .stride = width,
                                                    .count = width,
                                                    .depth = head_dim,
                                                    .transposed = true}));
    }
    for (const Floats& panel : packed) in_panels.push_back(panel.data());
    const Floats start(width + table().vector_length, 0.5f);
    Floats context(panels * stride), found(tokens * width), truth(tokens * width);
    for (int64_t i = 0; i < context.size(); ++i) context[i] = values[i];
    for (Floats* out : {&found, &truth}) {
      table().sum_projections({.context = context.data(),
                               .weights = (out == &found ? as_they_are : in_panels).data(),
                               .start = start.data(),
                               .out = out->data(),
                               .num_segments = segments,
                               .num_tokens = tokens,
                               .width = width,
                               .head_dim = head_dim,
                               .context_stride = stride,
                               .part = 0,
                               .parts = 1,
                               .weight_stride = out == &found ? width : 0});
      ASSERT_TRUE(out->intact());
    }
    for (int64_t i = 0; i < tokens * width; ++i) ASSERT_EQ(found[i], truth[i]) << i;
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
