#include "headkit/scorers/agreement.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "support/golden.h"

namespace headkit {
namespace {

using testing::golden_case;
using Doubles = std::vector<double>;

TEST(AgreementTest, RankCorrelationsHaveTheGoldenValues) {
  const auto golden = golden_case("agreement.rank_correlation");
  const auto a = golden["inputs"]["a"].get<Doubles>(), b = golden["inputs"]["b"].get<Doubles>();
  const auto expected = golden["expected"];
  EXPECT_NEAR(pearson(a, b), expected["pearson"].get<double>(), 1e-12);
  EXPECT_NEAR(spearman(a, b), expected["spearman"].get<double>(), 1e-12);
  const KendallTau tau = kendall_tau(a, b);
  EXPECT_NEAR(tau.tau_b, expected["kendall_tau_b"].get<double>(), 1e-12);
  EXPECT_EQ(tau.concordant, expected["concordant"].get<int64_t>());
  EXPECT_EQ(tau.discordant, expected["discordant"].get<int64_t>());
}

TEST(AgreementTest, TopKOverlapHasTheGoldenValues) {
  const auto golden = golden_case("agreement.top_k_overlap");
  const auto a = golden["inputs"]["a"].get<Doubles>(), b = golden["inputs"]["b"].get<Doubles>();
  const auto expected = golden["expected"];
  for (size_t i = 0; i < 2; ++i) {
    const TopKOverlap found = top_k_overlap(a, b, golden["inputs"]["k"][i].get<int64_t>());
    EXPECT_EQ(found.top_a, expected["top_a"][i].get<std::vector<int64_t>>());
    EXPECT_EQ(found.top_b, expected["top_b"][i].get<std::vector<int64_t>>());
    EXPECT_NEAR(found.overlap, expected["overlap"][i].get<double>(), 1e-12);
    EXPECT_NEAR(found.chance, expected["chance"][i].get<double>(), 1e-12);
    EXPECT_NEAR(found.kuncheva, expected["kuncheva"][i].get<double>(), 1e-12);
    EXPECT_NEAR(found.jaccard, expected["jaccard"][i].get<double>(), 1e-12);
    EXPECT_NEAR(found.p_value, expected["p_value"][i].get<double>(), 1e-12);
  }
}

TEST(AgreementTest, TheChanceOfAnOverlapIsThatOfAllSubsets) {
  const Doubles a{5, 4, 3, 2, 1, 0};
  int at_least_two = 0, subsets = 0;
  for (int set = 0; set < 64; ++set) {
    if (__builtin_popcount(set) != 3) continue;
    ++subsets;
    at_least_two += __builtin_popcount(set & 7) >= 2;
  }
  const Doubles b{5, 4, 0, 3, 1, 2};
  EXPECT_NEAR(top_k_overlap(a, b, 3).p_value, static_cast<double>(at_least_two) / subsets, 1e-12);
}

TEST(AgreementTest, ExtremesAndConstants) {
  const Doubles up{1, 2, 3, 4}, down{8, 6, 4, 1}, flat{1, 1, 1, 1}, many{-1e9, 2, 3, 5e9};
  EXPECT_EQ(spearman(up, many), 1);
  EXPECT_EQ(spearman(up, down), -1);
  EXPECT_EQ(kendall_tau(up, down).tau_b, -1);
  EXPECT_TRUE(std::isnan(spearman(up, flat)));
  EXPECT_TRUE(std::isnan(kendall_tau(flat, up).tau_b));
  EXPECT_TRUE(std::isnan(top_k_overlap(up, down, 4).kuncheva));
  EXPECT_EQ(top_k_overlap(flat, flat, 2).top_a, (std::vector<int64_t>{0, 1}));
  EXPECT_THROW(spearman(up, Doubles{1}), std::invalid_argument);
  EXPECT_THROW(top_k_overlap(up, down, 0), std::invalid_argument);
  EXPECT_THROW(top_k_overlap(up, down, 5), std::invalid_argument);
}

at::Tensor noisy(const at::Tensor& truth, double noise, int64_t runs) {
  return truth + noise * at::randn({runs, truth.size(0), truth.size(1)}, at::kDouble);
}

TEST(AgreementTest, RepeatsAreComparedRunByRun) {
  at::manual_seed(1);
  const at::Tensor truth = at::randn({3, 5}, at::kDouble);
  const at::Tensor one = noisy(truth, 0.3, 4), other = noisy(truth, 0.3, 4);
  const Agreement found = agreement({{"one", one}, {"other", other}}, {.top_k = 5});
  const auto row = [](const at::Tensor& values) {
    const at::Tensor flat = values.flatten().contiguous();
    return Doubles(flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel());
  };
  double sum = 0, between = 0;
  for (int64_t run = 0; run < 4; ++run) {
    sum += spearman(row(one[run]), row(other[run])) / 4;
    for (int64_t next = run + 1; next < 4; ++next) {
      between += spearman(row(one[run]), row(one[next])) / 6;
    }
  }
  EXPECT_NEAR(found.spearman.values[0][1].item<double>(), sum, 1e-12);
  EXPECT_NEAR(found.between_runs[0].item<double>(), between, 1e-12);
  EXPECT_EQ(found.spearman.values[1][1].item<double>(), 1);
  EXPECT_LE(found.spearman.lower[0][1].item<double>(), sum);
  EXPECT_GE(found.spearman.upper[0][1].item<double>(), sum);
  EXPECT_NEAR(found.chance, 1.0 / 3, 1e-12);
  EXPECT_EQ(found.rank_spread.sizes(), (std::vector<int64_t>{3, 5}));
}

TEST(AgreementTest, ExamplesAreAveragedBeforeTheyAreCompared) {
  at::manual_seed(2);
  const at::Tensor truth = at::randn({3, 5}, at::kDouble);
  const at::Tensor one = noisy(truth, 2, 200), other = noisy(truth, 2, 200);
  const AgreementOptions options{.runs = SeriesRuns::kExamples, .resamples = 200};
  const Agreement found = agreement({{"one", one}, {"other", other}}, options);
  const AgreementOptions single{.resamples = 0};
  const Agreement means =
      agreement({{"one", one.mean(0, true)}, {"other", other.mean(0, true)}}, single);
  EXPECT_TRUE(at::allclose(found.spearman.values, means.spearman.values));
  EXPECT_TRUE(at::allclose(found.overlap.values, means.overlap.values));
  EXPECT_FALSE(means.spearman.lower.defined());
  EXPECT_LT(found.pearson.lower[0][1].item<double>(), found.pearson.values[0][1].item<double>());
  EXPECT_LT(found.pearson.values[0][1].item<double>(), found.pearson.upper[0][1].item<double>());
}

TEST(AgreementTest, TheSpreadOfRanksPointsAtTheHeadInQuestion) {
  const at::Tensor one = at::tensor({1.0, 2.0, 3.0, 4.0}, at::kDouble).reshape({1, 2, 2});
  const at::Tensor other = at::tensor({9.0, 1.0, 2.0, 3.0}, at::kDouble).reshape({1, 2, 2});
  const at::Tensor spread = agreement({{"a", one}, {"b", other}}).rank_spread;
  EXPECT_TRUE(at::allclose(spread, at::tensor({1.5, 0.5, 0.5, 0.5}, at::kDouble).reshape({2, 2})));
}

TEST(AgreementTest, RefusesWhatDoesNotFit) {
  const at::Tensor values = at::randn({2, 3, 4}, at::kDouble);
  EXPECT_THROW(agreement({{"a", values}}), std::invalid_argument);
  EXPECT_THROW(agreement({{"a", values}, {"a", values}}), std::invalid_argument);
  EXPECT_THROW(agreement({{"a", values}, {"b", values[0]}}), std::invalid_argument);
  EXPECT_THROW(agreement({{"a", values}, {"b", values / 0}}), std::invalid_argument);
  EXPECT_THROW(agreement({{"a", values}, {"b", values}}, {.top_k = 13}), std::invalid_argument);
  EXPECT_THROW(agreement({{"a", values}, {"b", values}}, {.confidence = 1}), std::invalid_argument);
}

TEST(AgreementTest, JsonHasNullWhereACorrelationIsUndefined) {
  const at::Tensor values = at::randn({1, 3, 4}, at::kDouble);
  const auto json =
      nlohmann::json::parse(agreement({{"a", values}, {"flat", at::ones_like(values)}}).to_json());
  EXPECT_TRUE(json["spearman"]["values"][0][1].is_null());
  EXPECT_TRUE(json["between_runs"][0].is_null());
  EXPECT_EQ(json["spearman"]["values"][0][0].get<double>(), 1);
}

}  // namespace
}  // namespace headkit
