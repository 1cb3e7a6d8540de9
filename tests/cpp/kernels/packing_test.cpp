#include "cpp/kernels/kernel_problem.h"

namespace headkit::kernels {
namespace {

using PackingTest = LevelTest;

TEST_P(PackingTest, TokenPanelsHoldTheTransposeAndZerosBehindIt) {
  for (const int64_t tokens : {1, 2, 15, 16, 17, 31, 48, 97}) {
    for (const int64_t width : {1, 5, 16, 37, 64}) {
      Problem p{.tokens = tokens, .width = width};
      p.fill(1);
      const Floats packed = pack_tokens(table(), p);
      ASSERT_TRUE(packed.intact());
      const int64_t P = table().panel;
      for (int64_t t = 0; t < (tokens + P - 1) / P * P; ++t) {
        for (int64_t i = 0; i < width; ++i) {
          const float found = packed[t / P * P * width + i * P + t % P];
          const bool in_vector = t < (tokens + table().vector_length - 1) / table().vector_length *
                                         table().vector_length;
          if (t < tokens) {
            ASSERT_EQ(found, p.x[t * width + i]) << tokens << " x " << width;
          } else if (in_vector) {
            ASSERT_EQ(found, 0.0f) << tokens << " x " << width << ", token " << t;
          }
        }
      }
    }
  }
}

TEST_P(PackingTest, RowsMayBeChosen) {
  Problem p{.tokens = 50, .width = 23};
  p.fill(2);
  std::vector<int32_t> rows;
  for (int32_t t = 1; t < 50; t += 3) rows.push_back(t);
  const Floats packed = pack_tokens(table(), p, &rows);
  const int64_t P = table().panel;
  for (size_t j = 0; j < rows.size(); ++j) {
    const int64_t place = static_cast<int64_t>(j);
    for (int64_t i = 0; i < p.width; ++i) {
      ASSERT_EQ(packed[place / P * P * p.width + i * P + place % P], p.x[rows[j] * p.width + i]);
    }
  }
}

TEST_P(PackingTest, PackedWeightsFillTheirRoomWithFiniteNumbers) {
  for (const int64_t head_dim : {1, 5, 8, 32, 64, 80}) {
    for (const int64_t width : {7, 48, 65}) {
      Problem p{.tokens = 1, .width = width, .heads = 2, .head_dim = head_dim};
      p.fill(3);
      Floats packed = pack_heads(table(), p);
      ASSERT_TRUE(packed.intact());
      double sum = 0.0, expected = 0.0;
      for (int64_t i = 0; i < packed.size(); ++i) {
        if (std::isfinite(packed[i])) sum += packed[i];
      }
      for (const auto* values : {&p.q, &p.k, &p.v, &p.o, &p.q_bias, &p.k_bias, &p.v_bias}) {
        for (const float value : *values) expected += value;
      }
      EXPECT_NEAR(sum, expected, 1e-6 * packed.size()) << head_dim << " x " << width;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, PackingTest, every_level(), level_name);

}  // namespace
}  // namespace headkit::kernels
