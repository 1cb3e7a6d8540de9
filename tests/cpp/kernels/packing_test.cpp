#include <algorithm>

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

// Blocks and column panels hold every element once, zeros behind the last of a depth, whichever way
// round the matrix was read.
TEST_P(PackingTest, MatricesArePackedFromRowsAndFromColumns) {
  const int64_t VL = table().vector_length;
  for (const int64_t count : {1, 5, 8, 32, 47, 64, 80, 130}) {
    for (const int64_t depth : {1, 7, 48, 65}) {
      const std::vector<float> rows = random_floats(count * depth, 3);
      std::vector<float> columns(rows.size());
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t k = 0; k < depth; ++k) columns[k * count + i] = rows[i * depth + k];
      }
      PackMatrixParams straight{rows.data(), nullptr, depth, count, depth, false};
      PackMatrixParams transposed{columns.data(), nullptr, count, count, depth, true};
      const auto check = [&](const Floats& one, const Floats& other) {
        ASSERT_TRUE(one.intact() && other.intact());
        std::vector<float> values;
        for (int64_t i = 0; i < one.size(); ++i) {
          if (std::isnan(one[i])) continue;  // behind the last element: alignment
          ASSERT_EQ(one[i], other[i]) << count << " x " << depth;
          if (one[i] != 0.0f) values.push_back(one[i]);
        }
        std::vector<float> expected = rows;
        std::sort(values.begin(), values.end());
        std::sort(expected.begin(), expected.end());
        EXPECT_EQ(values, expected) << count << " x " << depth;
      };
      check(pack_blocks(table(), straight), pack_blocks(table(), transposed));
      const Floats panels = pack_column_panels(table(), straight);
      check(panels, pack_column_panels(table(), transposed));
      if (count > VL) continue;
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t i = 0; i < VL; ++i) {
          ASSERT_EQ(panels[k * VL + i], i < count ? rows[i * depth + k] : 0.0f);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, PackingTest, every_level(), level_name);

}  // namespace
}  // namespace headkit::kernels
