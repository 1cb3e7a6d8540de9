#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "headkit/explain/explain_decisions.h"
#include "headkit/explain/explanation_stability.h"
#include "headkit/explain/metric_agreement.h"
#include "headkit/explain/simulatability.h"
#include "headkit/gates/linear_gate.h"
#include "headkit/gates/run_policy.h"
#include "headkit/scorers/rank_biased_overlap.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 4, 2, 5, 0};

LinearGate random_gate(uint64_t seed) {
  at::manual_seed(seed);
  LinearGateSettings settings;
  settings.weight = at::randn({3, 4, 5}, at::kDouble);
  settings.reference = at::randn({5}, at::kDouble);
  settings.static_logits = 0.3 * at::randn({3, 4}, at::kDouble);
  return LinearGate(settings);
}

std::vector<DecisionRecord> records_of(int64_t inputs, const LinearGate& gate) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, inputs, 12, 3, 2);
  return explain_decisions(*model, batch, gate, {.removals = 0});
}

// Shares of the agreement of depth d, with sets written out.
double plain_rbo(const std::vector<int64_t>& a, const std::vector<int64_t>& b, double p) {
  double sum = 0, agreement = 0;
  std::set<int64_t> first, second;
  for (size_t d = 0; d < a.size(); ++d) {
    first.insert(a[d]);
    second.insert(b[d]);
    double both = 0;
    for (const int64_t item : first) both += static_cast<double>(second.count(item));
    agreement = both / static_cast<double>(d + 1);
    sum += (1 - p) * std::pow(p, d) * agreement;
  }
  return sum + agreement * std::pow(p, a.size());
}

TEST(RankBiasedOverlap, IsTheWeightedMeanOfOverlaps) {
  EXPECT_NEAR(rank_biased_overlap(std::vector<double>{3, 2, 1}, std::vector<double>{9, 5, 1}), 1,
              1e-12);
  // a ranks 0 1 2 3, b ranks 1 0 3 2.
  const std::vector<double> a{4, 3, 2, 1}, b{3, 4, 1, 2};
  EXPECT_NEAR(rank_biased_overlap(a, b), plain_rbo({0, 1, 2, 3}, {1, 0, 3, 2}, 0.9), 1e-12);
  EXPECT_NEAR(rank_biased_overlap(a, b, 0.5), 0.5 * 0 + 0.25 * 1 + 0.125 * 2 / 3. + 0.125, 1e-12);
  const std::vector<double> ties{1, 1, 1, 1};
  EXPECT_NEAR(rank_biased_overlap(a, ties), 1, 1e-12) << "ties go to the lower place";
  // The first ten ranks carry about 86 % of the weight at p = 0.9: two rankings of many items that
  // share the top ten and nothing right after.
  const int64_t n = 2000;
  std::vector<double> top(n), other(n);
  for (int64_t i = 0; i < n; ++i) {
    top[i] = static_cast<double>(n - i);
    other[i] = i < 10 ? static_cast<double>(2 * n - i) : static_cast<double>(i);
  }
  EXPECT_NEAR(rank_biased_overlap(top, other), 0.8556, 1e-3);
  EXPECT_THROW(rank_biased_overlap(a, std::vector<double>{1}), std::invalid_argument);
  EXPECT_THROW(rank_biased_overlap(a, b, 1), std::invalid_argument);
  EXPECT_THROW(rank_biased_overlap(a, std::vector<double>{1, 2, 3, NAN}), std::invalid_argument);
}

TEST(Simulatability, AurocCountsPairs) {
  const std::vector<double> scores{0.1, 0.4, 0.4, 0.8, -1};
  const std::vector<char> positive{0, 1, 0, 1, 0};
  // pairs: (.4 > .1, .4 = .4, .4 > -1), (.8 > all three)
  EXPECT_DOUBLE_EQ(*auroc(scores, positive), (2.5 + 3) / 6);
  EXPECT_FALSE(auroc({1, 2}, {1, 1}));
  EXPECT_THROW(auroc({1}, {}), std::invalid_argument);
}

TEST(Simulatability, AllPartsTellTheDecisionAndNoneTellTheHeadAtMost) {
  const std::vector<DecisionRecord> records = records_of(60, random_gate(3));
  double decisions = 0, right = 0, on = 0;
  for (const DecisionRecord& record : records) {
    for (const HeadDecision& head : record.heads) {
      ++decisions;
      right += (*head.base >= *head.threshold) == (head.state == "on");
      on += head.state == "on";
    }
  }
  const Simulatability none = gate_simulatability(records, 0);
  EXPECT_EQ(none.inputs, 60);
  EXPECT_NEAR(none.accuracy, right / decisions, 1e-12);
  EXPECT_NEAR(none.majority, std::max(on, decisions - on) / decisions, 1e-12);
  EXPECT_GE(none.majority_by_head, none.majority);
  EXPECT_NEAR(none.auroc_by_head.value_or(0.5), 0.5, 1e-12) << "the base is the same everywhere";
  const Simulatability all = gate_simulatability(records, 12);
  EXPECT_GT(all.accuracy, none.accuracy);
  EXPECT_GT(all.accuracy, all.majority_by_head);
  EXPECT_GT(*all.auroc, 0.95);
  EXPECT_LE(all.lower, all.accuracy);
  EXPECT_GE(all.upper, all.accuracy);
  EXPECT_THROW(gate_simulatability({records[0]}), std::invalid_argument);
  std::vector<DecisionRecord> bare = {records[0], records[1]};
  for (DecisionRecord& record : bare) {
    for (HeadDecision& head : record.heads) head.base.reset();
  }
  EXPECT_THROW(gate_simulatability(bare), std::invalid_argument);
}

TEST(Randomisation, AnotherGateExplainsOtherwiseAndTheSameGateDoesNot) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const BatchList data({testing::random_toy_batch(kLayout, 30, 12, 3, 2),
                        testing::random_toy_batch(kLayout, 20, 9, 3, 5)});
  const std::vector<LinearLogits> gates = linear_logits(random_gate(3));
  const RandomisationCheck same = check_randomisation(*model, data, gates, gates);
  EXPECT_NEAR(same.similarity, 1, 1e-12);
  EXPECT_FALSE(same.changes);
  EXPECT_EQ(same.heads, 12);
  const std::vector<LinearLogits> fresh = reinitialised(gates, 5);
  EXPECT_TRUE(at::equal(fresh[0].weight, reinitialised(gates, 5)[0].weight));
  EXPECT_FALSE(at::equal(fresh[0].weight, gates[0].weight));
  EXPECT_TRUE(at::equal(fresh[0].base, gates[0].base));
  const RandomisationCheck other = check_randomisation(*model, data, gates, fresh);
  EXPECT_TRUE(other.changes) << other.to_json();
  EXPECT_THROW(check_randomisation(*model, data, gates, {}), std::invalid_argument);
}

TEST(ExplanationStability, KeepsThreeClaimsApart) {
  at::manual_seed(4);
  const at::Tensor gates = at::rand({10, 3, 4}).gt(0.5).to(at::kFloat);
  const at::Tensor reasons = at::randn({10, 30}, at::kDouble);
  const at::Tensor effects = at::randn({10, 3, 4}, at::kDouble);
  const std::vector<StabilityRun> runs{{"seed 0", gates, reasons, effects},
                                       {"seed 1", gates, -reasons, at::randn_like(effects)},
                                       {"seed 2", gates, 2 * reasons, at::randn_like(effects)}};
  const ExplanationStability found = explanation_stability(runs, "seed");
  EXPECT_EQ(found.inputs, 10);
  EXPECT_NEAR(*found.selection->nogueira, 1, 1e-12);
  EXPECT_EQ(found.selection->identical, 1);
  EXPECT_EQ(found.selection->jaccard, 1);
  EXPECT_NEAR(*found.explanation->kendall, 1, 1e-12) << "reasons count by magnitude";
  EXPECT_NEAR(found.explanation->rbo, 1, 1e-12);
  EXPECT_LT(std::abs(*found.effect->kendall), 0.3);
  EXPECT_LT(found.effect->rbo, 0.9);
  const auto json = nlohmann::json::parse(found.to_json());
  EXPECT_EQ(json["axis"], "seed");
  EXPECT_TRUE(json["selection"]["nogueira"].is_number());
}

TEST(ExplanationStability, NogueiraIsAboutZeroForRandomSetsOfAnySize) {
  // T7, over inputs: n = 144, k = n / 8 and 7 n / 8.
  for (const int64_t size : {18, 126}) {
    at::manual_seed(7);
    std::vector<StabilityRun> runs;
    for (int64_t run = 0; run < 5; ++run) {
      at::Tensor gates = at::zeros({12, 144});
      for (int64_t b = 0; b < 12; ++b) {
        gates[b].index_fill_(0, at::randperm(144, at::kLong).slice(0, 0, size), 1);
      }
      runs.push_back({c10::str("run ", run), gates.reshape({12, 12, 12}), {}, {}});
    }
    const ExplanationStability found = explanation_stability(runs, "seed");
    EXPECT_LT(std::abs(*found.selection->nogueira), 0.05);
    EXPECT_FALSE(found.explanation);
    EXPECT_FALSE(found.effect);
  }
}

TEST(ExplanationStability, IsNullWhereItIsUndefinedAndRefusesWhatDoesNotFit) {
  const StabilityRun all{"a", at::ones({2, 1, 3}), {}, {}};
  const ExplanationStability found = explanation_stability({all, all}, "dtype");
  EXPECT_FALSE(found.selection->nogueira);
  EXPECT_EQ(found.selection->undefined_inputs, 2);
  EXPECT_EQ(found.selection->identical, 1);
  EXPECT_THROW(explanation_stability({all}, "dtype"), std::invalid_argument);
  const StabilityRun other{"b", at::ones({2, 1, 4}), {}, {}};
  EXPECT_THROW(explanation_stability({all, other}, "dtype"), std::invalid_argument);
  const StabilityRun none{"c", {}, at::ones({2, 4}), {}};
  EXPECT_THROW(explanation_stability({all, none}, "dtype"), std::invalid_argument);
  const StabilityRun nan{"d", at::full({2, 1, 3}, NAN), {}, {}};
  EXPECT_THROW(explanation_stability({all, nan}, "dtype"), std::invalid_argument);
}

TEST(MetricAgreement, ListsHeadsThatMetricsPlaceAQuarterApart) {
  const at::Tensor norm = at::arange(8, 0, -1, at::kDouble).reshape({1, 2, 4});
  at::Tensor toggle = norm.clone();
  toggle[0][0][0] = 0.5;  // from the first rank to the last
  const MetricAgreement found =
      metric_agreement({{"norm", norm}, {"toggle", toggle}}, {.resamples = 0});
  EXPECT_EQ(found.gap, 2);
  ASSERT_EQ(found.gaps.size(), 1u);
  EXPECT_EQ(found.gaps[0].head, (HeadId{0, 0}));
  EXPECT_EQ(found.gaps[0].first_rank, 1);
  EXPECT_EQ(found.gaps[0].second_rank, 8);
  // One of 28 pairs with the head agrees no more: 7 of them.
  EXPECT_NEAR(found.agreement.kendall.values[0][1].item<double>(), (28 - 2 * 7) / 28., 1e-12);
  const auto json = nlohmann::json::parse(found.to_json());
  EXPECT_EQ(json["gaps"][0]["second"], "toggle");
}

}  // namespace
}  // namespace headkit
