#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "headkit/pruners/mean_output.h"
#include "headkit/pruners/removal.h"
#include "headkit/scorers/ablation.h"
#include "headkit/scorers/all_but_one.h"
#include "headkit/scorers/greedy_gnorm.h"
#include "headkit/scorers/hies.h"
#include "headkit/scorers/kl_curvature.h"
#include "headkit/scorers/shapley.h"
#include "support/golden.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 2, .model_dim = 5};

HeadScores score(const HeadScorer& scorer, GatedModel& model, const std::vector<Batch>& batches,
                 const ScoreOptions& options = {}) {
  return scorer.score(model, BatchList(batches), *cross_entropy(), options);
}

nlohmann::json settings_of(const HeadScores& scores) {
  return nlohmann::json::parse(scores.settings);
}

double mean_loss(GatedModel& model, const Batch& batch, const GateSet& gates) {
  return cross_entropy()->loss(model(batch, gates), batch, {}).mean().item<double>();
}

TEST(AllButOneTest, GoldenRisesAndTheBestOfEachLayer) {
  const auto& golden = testing::golden_case("toy.ablation");
  const auto model = testing::golden_toy_model();
  const HeadScores scores = score(AllButOneScorer(), *model, {testing::golden_toy_batch()});
  testing::expect_golden(-scores.values, golden, "all_but_one");
  const auto best = settings_of(scores)["best"];
  EXPECT_EQ(best[0]["head"], 0);
  EXPECT_NEAR(best[0]["rise"].get<double>(), -0.2474421543425, 1e-9);
  EXPECT_EQ(best[1]["head"], 2);
  EXPECT_TRUE(at::allclose(scores.values, (scores.lower + scores.upper) / 2, 1, 1));
}

TEST(AblationTest, MeanReplacementIsThatOfMeanOutputs) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const std::vector<Batch> data{testing::random_toy_batch(kLayout, 4, 6, 3, 2),
                                testing::random_toy_batch(kLayout, 3, 5, 3, 3)};
  ScoreOptions compensated;
  compensated.dropped_output = mean_head_outputs(*model, BatchList(data));
  EXPECT_TRUE(at::allclose(score(AblationScorer({.replacement = "mean"}), *model, data).values,
                           score(AblationScorer(), *model, data, compensated).values, 1e-10,
                           1e-12));
  EXPECT_THROW(score(AblationScorer({.replacement = "mean"}), *model, data, compensated),
               std::invalid_argument);
  EXPECT_THROW(score(AblationScorer({.replacement = "noise"}), *model, data),
               std::invalid_argument);
}

TEST(AblationTest, ResamplingTakesTheMeanOutputOfAnotherExample) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch pair = testing::random_toy_batch(kLayout, 2, 6, 3, 2);
  std::vector<Batch> apart;
  std::vector<at::Tensor> means;
  for (int64_t i = 0; i < 2; ++i) {
    apart.push_back(select_examples(pair, at::arange(i, i + 1)));
    means.push_back(mean_head_outputs(*model, BatchList({apart.back()})));
  }
  at::Tensor expected = at::zeros({3, 4}, at::kDouble);
  for (int64_t i = 0; i < 2; ++i) {
    ScoreOptions other;
    other.dropped_output = means[static_cast<size_t>(1 - i)];
    expected += score(AblationScorer(), *model, {apart[static_cast<size_t>(i)]}, other).values / 2;
  }
  for (const auto& data : {std::vector<Batch>{pair}, apart}) {
    EXPECT_TRUE(
        at::allclose(score(AblationScorer({.replacement = "resample"}), *model, data).values,
                     expected, 1e-10, 1e-12));
  }
  EXPECT_THROW(score(AblationScorer({.replacement = "resample"}), *model, {apart[0]}),
               std::invalid_argument);
}

TEST(ShapleyTest, KnownGames) {
  const auto& golden = testing::golden_case("shapley.games");
  const std::vector<double> members{0.3, -0.2, 0.0, 0.7};
  at::Tensor additive = at::zeros({16}, at::kDouble);
  for (int64_t set = 0; set < 16; ++set) {
    for (int64_t player = 0; player < 4; ++player) {
      if (set >> player & 1) additive[set] += members[static_cast<size_t>(player)];
    }
  }
  testing::expect_golden(shapley_values(additive), golden, "additive");
  at::Tensor glove = at::zeros({8}, at::kDouble);
  for (int64_t set : {5, 6, 7}) glove[set] = 1;
  testing::expect_golden(shapley_values(glove), golden, "glove");
  EXPECT_THROW(shapley_values(at::zeros({6}, at::kDouble)), std::invalid_argument);
}

TEST(ShapleyTest, GoldenExactAndSampledValues) {
  const auto& golden = testing::golden_case("toy.shapley");
  const auto model = testing::golden_toy_model();
  const std::vector<Batch> data{testing::golden_toy_batch()};
  const HeadScores exact = score(ShapleyScorer(), *model, data);
  testing::expect_golden(exact.values, golden, "shapley");
  const auto settings = settings_of(exact);
  EXPECT_TRUE(settings["exact"].get<bool>());
  EXPECT_NEAR(settings["v_all"].get<double>(), golden["expected"]["v_all"].get<double>(), 1e-9);
  EXPECT_NEAR(settings["v_none"].get<double>(), golden["expected"]["v_none"].get<double>(), 1e-9);

  const HeadScores sampled =
      score(ShapleyScorer({.permutations = 200, .exact = false}), *model, data);
  const double total = settings["v_all"].get<double>() - settings["v_none"].get<double>();
  EXPECT_NEAR(sampled.values.sum().item<double>(), total, 1e-10);
  EXPECT_NEAR(exact.values.sum().item<double>(), total, 1e-10);
  EXPECT_EQ(settings_of(sampled)["truncated"], 0);
  EXPECT_EQ(settings_of(sampled)["permutations"], 200);
  // Five times the distance to the end of a 95 % interval: about ten standard errors.
  const at::Tensor half = (sampled.upper - sampled.lower) / 2;
  EXPECT_TRUE((sampled.values - exact.values).abs().le(2.5 * half + 1e-12).all().item<bool>());
  EXPECT_TRUE(
      at::equal(score(ShapleyScorer({.permutations = 200, .exact = false}), *model, data).values,
                sampled.values));
}

TEST(ShapleyTest, NullAndTwinHeads) {
  const auto model = testing::random_toy_model({2, 3, 2, 5}, 3, 1);
  const AttentionWeights w = model->attention(1);
  w.o.slice(1, 0, 2).zero_();
  for (const at::Tensor* t : {&w.q, &w.k, &w.v, &w.q_bias, &w.k_bias, &w.v_bias}) {
    t->slice(0, 4, 6).copy_(t->slice(0, 2, 4));
  }
  w.o.slice(1, 4, 6).copy_(w.o.slice(1, 2, 4));
  const std::vector<Batch> data{testing::random_toy_batch({2, 3, 2, 5}, 5, 4, 3, 2)};
  const at::Tensor values = score(ShapleyScorer(), *model, data).values;
  EXPECT_NEAR(values[1][0].item<double>(), 0, 1e-14);
  EXPECT_NEAR(values[1][1].item<double>(), values[1][2].item<double>(), 1e-14);
  const HeadScores sampled =
      score(ShapleyScorer({.permutations = 4, .exact = false}), *model, data);
  EXPECT_NEAR(sampled.values[1][0].item<double>(), 0, 1e-14);
}

TEST(ShapleyTest, TruncationIsReportedAndTheStopRuleSavesPermutations) {
  const auto model = testing::golden_toy_model();
  const std::vector<Batch> data{testing::golden_toy_batch()};
  const auto cut = settings_of(
      score(ShapleyScorer({.permutations = 10, .tolerance = 0.3, .exact = false}), *model, data));
  EXPECT_GT(cut["truncated"].get<double>(), 0);
  EXPECT_LT(cut["truncated"].get<double>(), 1);
  // Head (0, 0) is worth more than all others together.
  const auto stopped = settings_of(
      score(ShapleyScorer({.permutations = 1000, .rank = 1, .exact = false}), *model, data));
  EXPECT_TRUE(stopped["separated"].get<bool>());
  EXPECT_LT(stopped["permutations"].get<int64_t>(), 1000);
  EXPECT_THROW(score(ShapleyScorer({.rank = 6}), *model, data), std::invalid_argument);
  EXPECT_THROW(score(ShapleyScorer({.permutations = 1}), *model, data), std::invalid_argument);
  EXPECT_THROW(score(ShapleyScorer({.tolerance = -1}), *model, data), std::invalid_argument);
}

TEST(KlCurvatureTest, GoldenCurvatureWithoutLabels) {
  const auto& golden = testing::golden_case("toy.objective_gradients");
  const auto model = testing::golden_toy_model();
  Batch batch = testing::golden_toy_batch();
  batch.erase("labels");
  const HeadScores exact = score(KlCurvatureScorer(), *model, {batch});
  testing::expect_golden(exact.values, golden, "kl_curvature");
  const at::Tensor drawn = score(KlCurvatureScorer({.draws = 1000}), *model, {batch}).values;
  EXPECT_TRUE(at::allclose(drawn, exact.values, 0.2, 1e-3));
}

TEST(KlCurvatureTest, IsTheSecondDifferenceOfTheDivergence) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 5, 6, 3, 2);
  const at::Tensor found = score(KlCurvatureScorer(), *model, {batch}).values;
  const at::Tensor dense = (*model)(batch);
  constexpr double kStep = 1e-3;
  for (int64_t layer = 0; layer < 3; ++layer) {
    for (int64_t head = 0; head < 4; ++head) {
      double sum = 0;
      for (const double step : {kStep, -kStep}) {
        GateSet gates;
        gates.heads = at::ones({3, 4}, at::kDouble);
        gates.heads[layer][head] = 1 + step;
        sum += kl_to_dense()->loss((*model)(batch, gates), batch, dense).mean().item<double>();
      }
      const double curvature = sum / (kStep * kStep);
      EXPECT_NEAR(found[layer][head].item<double>(), curvature, 1e-4 * (1 + curvature));
    }
  }
}

TEST(GreedyGnormTest, GoldenProducts) {
  const auto& golden = testing::golden_case("toy.greedy_gnorm_first_step");
  const auto model = testing::golden_toy_model();
  const Batch batch = testing::golden_toy_batch();
  const std::vector<Batch> apart{select_examples(batch, at::arange(2)),
                                 select_examples(batch, at::arange(2, 3))};
  for (const auto& data : {std::vector<Batch>{batch}, apart}) {
    testing::expect_golden(score(GreedyGnormScorer({.recompute = false}), *model, data).values,
                           golden, "score");
  }
}

TEST(GreedyGnormTest, TheOrderIsThatOfCuttingAndComputingAnew) {
  const std::vector<Batch> data{testing::random_toy_batch(kLayout, 5, 6, 3, 2)};
  const HeadScores found =
      score(GreedyGnormScorer(), *testing::random_toy_model(kLayout, 3, 1), data);
  const auto order = settings_of(found)["order"];
  ASSERT_EQ(order.size(), 12u);
  const auto cut = testing::random_toy_model(kLayout, 3, 1);
  for (size_t place = 0; place + 1 < 12; ++place) {
    const at::Tensor keep = cut->heads().keep().clone();
    const at::Tensor now = score(GreedyGnormScorer({.recompute = false}), *cut, data)
                               .values.masked_fill(keep.logical_not(), INFINITY);
    const int64_t least = now.flatten().argmin().item<int64_t>();
    EXPECT_EQ(order[place][0], least / 4);
    EXPECT_EQ(order[place][1], least % 4);
    EXPECT_EQ(found.values[least / 4][least % 4].item<double>(), place + 1);
    keep[least / 4][least % 4] = false;
    remove_heads(*cut, HeadMask(keep));
  }
}

TEST(HiesTest, GoldenCombination) {
  const auto& golden = testing::golden_case("toy.hies");
  const auto model = testing::golden_toy_model();
  const std::vector<Batch> data{testing::golden_toy_batch()};
  const HeadScores scores = score(HiesScorer(), *model, data);
  testing::expect_golden(scores.values, golden, "score");
  EXPECT_TRUE(scores.lower.le(scores.upper).all().item<bool>());
  EXPECT_THROW(score(HiesScorer({.alpha = 1.5}), *model, data), std::invalid_argument);
}

TEST(ShapleyTest, TheWorthOfNoHeadsIsMinusTheMeanLossWithoutAny) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 5, 6, 3, 2);
  GateSet closed;
  closed.heads = at::zeros({3, 4}, at::kDouble);
  const HeadScores scores =
      score(ShapleyScorer({.permutations = 10, .exact = false}), *model, {batch});
  EXPECT_NEAR(settings_of(scores)["v_none"].get<double>(), -mean_loss(*model, batch, closed),
              1e-12);
}

}  // namespace
}  // namespace headkit
