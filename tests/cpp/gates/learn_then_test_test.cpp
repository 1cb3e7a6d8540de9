#include "headkit/gates/learn_then_test.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <cmath>

namespace headkit {
namespace {

at::Tensor unit_grid(int64_t steps) { return at::arange(steps + 1, at::kDouble) / steps; }

// P(Binomial(n, p) <= k) by adding up all outcomes with Pascal's triangle.
double cdf(int64_t k, int64_t n, double p) {
  std::vector<double> mass{1};
  for (int64_t trial = 0; trial < n; ++trial) {
    std::vector<double> next(mass.size() + 1, 0);
    for (size_t i = 0; i < mass.size(); ++i) {
      next[i] += mass[i] * (1 - p);
      next[i + 1] += mass[i] * p;
    }
    mass = std::move(next);
  }
  double sum = 0;
  for (int64_t i = 0; i <= std::min(k, n); ++i) sum += mass[static_cast<size_t>(i)];
  return sum;
}

TEST(HoeffdingBentkus, IsTheSmallerOfBothBounds) {
  for (const double risk : {0.05, 0.3}) {
    for (const int64_t n : {10, 60}) {
      for (int64_t k = 0; k <= n; k += 3) {
        const double mean = static_cast<double>(k) / static_cast<double>(n);
        double hoeffding = 1;
        if (mean < risk) {
          const double first = mean > 0 ? mean * std::log(mean / risk) : 0;
          hoeffding = std::exp(-n * (first + (1 - mean) * std::log((1 - mean) / (1 - risk))));
        }
        const double expected = std::min({1.0, hoeffding, M_E * cdf(k, n, risk)});
        EXPECT_NEAR(hoeffding_bentkus_p_value(mean, n, risk), expected, 1e-10) << n << " " << k;
      }
    }
  }
  EXPECT_THROW(hoeffding_bentkus_p_value(-0.1, 10, 0.5), std::invalid_argument);
  EXPECT_THROW(hoeffding_bentkus_p_value(0.1, 0, 0.5), std::invalid_argument);
}

// Valid as a p-value: at a true risk of alpha it is below delta at most delta of the time.
TEST(HoeffdingBentkus, IsRarelySmallAtTheBoundary) {
  for (const int64_t n : {20, 100}) {
    for (const double delta : {0.05, 0.1, 0.3}) {
      double chance = 0;
      for (int64_t k = 0; k <= n; ++k) {
        const double mean = static_cast<double>(k) / static_cast<double>(n);
        if (hoeffding_bentkus_p_value(mean, n, 0.1) <= delta) {
          chance += cdf(k, n, 0.1) - (k > 0 ? cdf(k - 1, n, 0.1) : 0);
        }
      }
      EXPECT_LE(chance, delta) << n;
    }
  }
}

TEST(LearnThenTest, StopsAtTheFirstFailureThoughLaterOnesWouldPass) {
  at::Tensor losses = at::zeros({100, 4}, at::kDouble);
  losses.slice(0, 0, 50).select(1, 1).fill_(1);  // only the second grid value is bad
  const LearnThenTestResult result = learn_then_test(losses, unit_grid(3), {.risk = 0.1});
  EXPECT_EQ(result.index, 2);
  EXPECT_DOUBLE_EQ(result.lambda, 2.0 / 3);
  EXPECT_NEAR(result.p_value, std::pow(0.9, 100), 1e-12);
  losses.zero_();
  EXPECT_EQ(learn_then_test(losses, unit_grid(3), {.risk = 0.1}).index, 0);
}

TEST(LearnThenTest, RefusesTooFewSamplesAndSaysHowManyItNeeds) {
  EXPECT_EQ(learn_then_test_samples_needed({.risk = 0.1, .delta = 0.1}), 22);
  EXPECT_EQ(learn_then_test_samples_needed({.risk = 0.2, .bound = 2, .delta = 0.1}), 22);
  EXPECT_NO_THROW(learn_then_test(at::zeros({22, 3}, at::kDouble), unit_grid(2), {.risk = 0.1}));
  try {
    learn_then_test(at::zeros({21, 3}, at::kDouble), unit_grid(2), {.risk = 0.1});
    FAIL() << "21 samples were accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("at least 22"), std::string::npos) << error.what();
  }
  // One sample fewer could not even pass without any loss.
  EXPECT_LE(hoeffding_bentkus_p_value(0, 22, 0.1), 0.1);
  EXPECT_GT(hoeffding_bentkus_p_value(0, 21, 0.1), 0.1);
  EXPECT_THROW(learn_then_test(at::zeros({50, 3}, at::kDouble), unit_grid(2), {.delta = 0}),
               std::invalid_argument);
}

// The level over replications: flips at lambda have probability (1 - lambda)^2 / 2 plus a bump
// that is not monotone; the promise must fail at most delta of the time, and is not empty.
TEST(LearnThenTest, BreaksThePromiseAtMostDeltaOfTheTime) {
  constexpr int64_t kReplications = 1000, kSamples = 200, kSteps = 20;
  const at::Tensor grid = unit_grid(kSteps);
  at::Tensor risk = (1 - grid).square() / 2;
  risk[8] = 0.6;  // worse than its cheaper neighbours
  risk[kSteps] = 0;
  const double alpha = 0.1, delta = 0.1;
  const at::Generator generator = at::detail::createCPUGenerator(3);
  int64_t broken = 0, useful = 0;
  for (int64_t i = 0; i < kReplications; ++i) {
    const at::Tensor losses =
        (at::rand({kSamples, 1}, generator, at::kDouble) < risk.unsqueeze(0)).to(at::kDouble);
    const auto result = learn_then_test(losses, grid, {.risk = alpha, .delta = delta});
    broken += risk[result.index].item<double>() > alpha;
    useful += result.lambda < 1;
  }
  const double rate = static_cast<double>(broken) / kReplications;
  EXPECT_LE(rate, delta + 4 * std::sqrt(delta * (1 - delta) / kReplications));
  EXPECT_GT(useful, kReplications * 9 / 10);
}

}  // namespace
}  // namespace headkit
