#include "headkit/scorers/paired_tests.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "support/golden.h"

namespace headkit {
namespace {

using testing::golden_case;

// `only_a` true in a alone, `only_b` in b alone, all others true in both.
std::pair<at::Tensor, at::Tensor> paired(int64_t examples, int64_t only_a, int64_t only_b) {
  const at::Tensor place = at::arange(examples);
  return {place.ge(only_b), place.lt(only_b).logical_or(place.ge(only_b + only_a))};
}

TEST(PairedTestsTest, McNemarHasTheGoldenValues) {
  const auto golden = golden_case("tests.mcnemar");
  const auto [a, b] = paired(872, golden["inputs"]["only_a"], golden["inputs"]["only_b"]);
  const McNemarTest found = mcnemar(a, b);
  const auto expected = golden["expected"];
  EXPECT_EQ(found.only_a, 12);
  EXPECT_EQ(found.only_b, 27);
  EXPECT_NEAR(found.accuracy_difference, expected["accuracy_difference"].get<double>(), 1e-12);
  EXPECT_NEAR(found.exact_p, expected["exact_p"].get<double>(), 1e-12);
  EXPECT_NEAR(found.mid_p, expected["mid_p"].get<double>(), 1e-12);
  EXPECT_NEAR(found.chi_square, expected["chi_square"].get<double>(), 1e-12);
  EXPECT_NEAR(found.chi_square_corrected, expected["chi_square_corrected"].get<double>(), 1e-12);
  EXPECT_NEAR(found.standard_error, expected["bootstrap_standard_error"].get<double>(), 1e-12);
}

TEST(PairedTestsTest, ThePairedBootstrapConvergesToTheStandardErrorOfMcNemar) {
  const auto [a, b] = paired(872, 12, 27);
  const double expected = mcnemar(a, b).standard_error;
  const BootstrapInterval found = paired_bootstrap(a, b);
  EXPECT_NEAR(found.mean, 15.0 / 872, 1e-12);
  EXPECT_NEAR(found.standard_error, expected, 0.03 * expected);
  EXPECT_NEAR(found.upper - found.lower, 2 * 1.96 * expected, 0.05 * 4 * expected);
  EXPECT_LT(found.p_value, 0.05);
}

TEST(PairedTestsTest, McNemarIsTheSumOverCoinsAndSymmetric) {
  const McNemarTest found = mcnemar(50, 1, 4);
  EXPECT_NEAR(found.exact_p, 2 * (1 + 5) / 32.0, 1e-12);
  EXPECT_NEAR(found.mid_p, (2 * (1 + 5) - 5) / 32.0, 1e-12);
  EXPECT_EQ(mcnemar(50, 4, 1).exact_p, found.exact_p);
  EXPECT_EQ(mcnemar(50, 3, 3).exact_p, 1);
  EXPECT_EQ(mcnemar(50, 0, 0).exact_p, 1);
  EXPECT_THROW(mcnemar(3, 2, 2), std::invalid_argument);
  EXPECT_THROW(mcnemar(at::ones({3}), at::ones({3})), std::invalid_argument);
}

TEST(PairedTestsTest, IntervalsKnowWhatTheyAreOver) {
  at::manual_seed(5);
  const int64_t seeds = 8, examples = 400;
  const at::Tensor by_seed = at::randn({seeds, 1}, at::kDouble);
  const at::Tensor by_example = at::randn({1, examples}, at::kDouble);
  const at::Tensor values = by_seed + by_example;
  const auto error = [&](BootstrapUnit unit) {
    return bootstrap_mean(values, unit).standard_error;
  };
  const double of_examples =
      by_example.std(at::IntArrayRef{1}, /*unbiased=*/false).item<double>() / std::sqrt(examples);
  const double of_seeds =
      by_seed.std(at::IntArrayRef{0}, /*unbiased=*/false).item<double>() / std::sqrt(seeds);
  EXPECT_NEAR(error(BootstrapUnit::kExamples), of_examples, 0.05 * of_examples);
  EXPECT_NEAR(error(BootstrapUnit::kSeeds), of_seeds, 0.05 * of_seeds);
  const double both = std::hypot(of_examples, of_seeds);
  EXPECT_NEAR(error(BootstrapUnit::kBoth), both, 0.05 * both);
}

TEST(PairedTestsTest, TheBootstrapOfFewValuesIsThatOfAllDraws) {
  const at::Tensor values = at::tensor({0.0, 1.0, 5.0}, at::kDouble);
  std::vector<double> means;
  for (int draw = 0; draw < 27; ++draw) {
    const double v[] = {0, 1, 5};
    means.push_back((v[draw % 3] + v[draw / 3 % 3] + v[draw / 9]) / 3);
  }
  const double exact = at::tensor(means, at::kDouble).std(/*unbiased=*/false).item<double>();
  const BootstrapInterval found =
      bootstrap_mean(values, BootstrapUnit::kExamples, {.resamples = 40000, .seed = 3});
  EXPECT_NEAR(found.standard_error, exact, 0.02 * exact);
  EXPECT_EQ(found.lower, 0);
  EXPECT_EQ(found.mean, 2);
}

TEST(PairedTestsTest, HolmIsTheStepDownRule) {
  const std::vector<double> found = holm({0.01, 0.04, 0.03, 0.005});
  const std::vector<double> expected{0.03, 0.06, 0.06, 0.02};
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(found[i], expected[i], 1e-12);
  EXPECT_EQ(holm({0.7, 0.9}), (std::vector<double>{1, 1}));
  EXPECT_TRUE(holm({}).empty());
  EXPECT_THROW(holm({1.5}), std::invalid_argument);
}

TEST(PairedTestsTest, ProportionsHaveTheGoldenValues) {
  const auto width = golden_case("tests.binomial_half_width");
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(binomial_half_width(width["inputs"]["p"][i], width["inputs"]["n"][i]),
                width["expected"]["half_width"][i].get<double>(), 1e-12);
  }
  const auto z = golden_case("tests.two_proportions");
  for (size_t i = 0; i < 8; ++i) {
    const auto pair = z["inputs"]["pairs"][i];
    EXPECT_NEAR(two_proportion_z(pair[0], 500, pair[1], 500), z["expected"]["z"][i].get<double>(),
                1e-10);
  }
  EXPECT_EQ(two_proportion_z(1, 5, 1, 7), 0);
}

TEST(PairedTestsTest, RefusesWhatHasNoInterval) {
  const at::Tensor one = at::ones({1, 4});
  EXPECT_THROW(bootstrap_mean(at::ones({0})), std::invalid_argument);
  EXPECT_THROW(bootstrap_mean(at::ones({2, 2, 2})), std::invalid_argument);
  EXPECT_THROW(bootstrap_mean(one * std::numeric_limits<double>::infinity()),
               std::invalid_argument);
  EXPECT_THROW(bootstrap_mean(one, BootstrapUnit::kSeeds), std::invalid_argument);
  EXPECT_THROW(bootstrap_mean(one, BootstrapUnit::kExamples, {.resamples = 0}),
               std::invalid_argument);
  EXPECT_THROW(bootstrap_mean(one, BootstrapUnit::kExamples, {.confidence = 0}),
               std::invalid_argument);
  EXPECT_THROW(paired_bootstrap(one, at::ones({1, 3})), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
