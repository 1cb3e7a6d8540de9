#include "headkit/gates/integer_scores.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace headkit {
namespace {

// The definition in tensor algebra, and what rounding may change.
struct Expected {
  double rounded, exact, slack;
};

Expected expected_of(const at::Tensor& q, const at::Tensor& k, double scale) {
  const at::Tensor centred = k - k.mean(0);
  const double sq = q.abs().max().item<double>() / 127,
               sk = centred.abs().max().item<double>() / 127;
  const at::Tensor q8 = (q / sq).round(), k8 = (centred / sk).round();
  const auto tokens = static_cast<double>(q.size(0)), width = static_cast<double>(q.size(1));
  return {std::abs(scale) * sq * sk * q8.matmul(k8.t()).norm().item<double>(),
          std::abs(scale) * q.matmul(centred.t()).norm().item<double>(),
          tokens * std::abs(scale) / 2 *
              (sk * q.abs().sum(1).max().item<double>() +
               sq * centred.abs().sum(1).max().item<double>() + width * sq * sk / 2)};
}

TEST(IntegerScores, AreTheDefinitionAndWithinItsBoundOfFloat64) {
  at::manual_seed(1);
  for (const auto& [tokens, width] :
       {std::pair<int64_t, int64_t>{1, 3}, {2, 1}, {7, 5}, {10, 5}, {11, 5}, {97, 16}, {257, 32}}) {
    for (const double scale : {1 / std::sqrt(static_cast<double>(width)), -0.3}) {
      const at::Tensor q = at::randn({tokens, width}, at::kDouble) * 3 + 1;
      const at::Tensor k = at::randn({tokens, width}, at::kDouble) - 4;
      const double found = integer_score_norm(q, k, scale);
      if (tokens == 1) {
        EXPECT_EQ(found, 0) << "one key is the mean key";
        continue;
      }
      const Expected expected = expected_of(q, k, scale);
      EXPECT_NEAR(found, expected.rounded, 1e-9 * expected.rounded) << tokens << " x " << width;
      EXPECT_LE(std::abs(found - expected.exact), expected.slack);
      EXPECT_NEAR(found, expected.exact, 0.05 * expected.exact) << tokens << " x " << width;
      // A constant added to every key is not seen.
      EXPECT_NEAR(integer_score_norm(q, k + at::randn({width}, at::kDouble), scale), found,
                  2 * expected.slack);
    }
  }
}

TEST(IntegerScores, OfConstantKeysOrNothingAreZero) {
  const at::Tensor q = at::randn({6, 4}, at::kDouble);
  EXPECT_EQ(integer_score_norm(q, at::ones({6, 4}, at::kDouble), 1), 0);
  EXPECT_EQ(integer_score_norm(at::zeros({6, 4}, at::kDouble), q, 1), 0);
  const at::Tensor none = at::zeros({0, 4}, at::kDouble);
  EXPECT_EQ(integer_score_norm(none, none, 1), 0);
  EXPECT_THROW(integer_score_norm(q, q.slice(0, 0, 5), 1), std::invalid_argument);
  EXPECT_THROW(integer_score_norm(q.to(at::kFloat), q.to(at::kFloat), 1), std::invalid_argument);
  EXPECT_THROW(integer_score_norm(q, q * std::nan(""), 1), std::invalid_argument);
}

TEST(IntegerScores, CostTheCheaperOfScoresAndGrams) {
  EXPECT_EQ(integer_score_flops(8, 4), 2 * 8 * 8 * 5);
  EXPECT_EQ(integer_score_flops(9, 4), 4 * 9 * 16 + 2 * 16);
  EXPECT_EQ(integer_score_flops(0, 4), 0);
}

}  // namespace
}  // namespace headkit
