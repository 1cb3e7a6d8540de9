#include "headkit/pruners/top_fraction.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "headkit/pruners/pruner.h"
#include "headkit/pruners/removal.h"
#include "headkit/scorers/gate_gradient.h"
#include "support/golden.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

HeadScores scores_of(const at::Tensor& values) {
  HeadScores scores;
  scores.values = values.to(at::kDouble);
  scores.metric = "made";
  return scores;
}

std::vector<HeadId> heads_of(const nlohmann::json& list) {
  std::vector<HeadId> heads;
  for (const auto& each : list) heads.push_back({each[0], each[1]});
  return heads;
}

TEST(TopFractionTest, CountsFollowThePublishedProtocols) {
  const auto& golden = testing::golden_case("michel.prune_counts");
  const auto& percent = golden["inputs"]["percent"];
  for (size_t i = 0; i < percent.size(); ++i) {
    const double keep = 1 - percent[i].get<double>() / 100;
    EXPECT_EQ(144 - kept_heads(keep, 144, KeepRounding::kUp),
              golden["expected"]["floor_of_144"][i]);
  }
  for (int tenth = 0; tenth < 10; ++tenth) {
    EXPECT_EQ(96 - kept_heads(1 - tenth / 10.0, 96, KeepRounding::kDown),
              golden["expected"]["ceil_of_96"][tenth]);
  }
}

TEST(TopFractionTest, TheDefaultRoundsHalfAHeadUp) {
  EXPECT_EQ(kept_heads(0.5, 5), 3);
  EXPECT_EQ(kept_heads(0.5, 72), 36);
  EXPECT_EQ(kept_heads(0.145, 100), 15);
  EXPECT_EQ(kept_heads(0.144, 100), 14);
  EXPECT_EQ(kept_heads(0, 7), 0);
  EXPECT_EQ(kept_heads(1, 7), 7);
  EXPECT_THROW(kept_heads(1.01, 7), std::invalid_argument);
  EXPECT_THROW(kept_heads(-0.01, 7), std::invalid_argument);
  EXPECT_THROW(kept_heads(NAN, 7), std::invalid_argument);
}

TEST(TopFractionTest, OrderOfTheGoldenModel) {
  const auto& golden = testing::golden_case("toy.global_pruning_order");
  const auto model = testing::golden_toy_model();
  const BatchList data({testing::golden_toy_batch()});
  const auto order = [&](const char* normalization, int64_t floor) {
    const HeadScores scores = GateGradientScorer().score(*model, data, *cross_entropy(),
                                                         {.normalization = normalization});
    return removal_order(scores, floor);
  };
  EXPECT_EQ(order("none", 0), heads_of(golden["expected"]["raw"]));
  EXPECT_EQ(order("layer_l2", 0), heads_of(golden["expected"]["l2_per_layer"]));
  EXPECT_EQ(order("none", 1), heads_of(golden["expected"]["protect_one_per_layer"]));

  // Loss along the raw order, by physical removal of one head after the other.
  std::vector<double> losses;
  at::Tensor keep = at::ones({2, 3}, at::kBool);
  for (int64_t step = 0;; ++step) {
    const Batch batch = testing::golden_toy_batch();
    losses.push_back(cross_entropy()->loss((*model)(batch), batch, {}).mean().item<double>());
    if (step == 6) break;
    const HeadId head = heads_of(golden["expected"]["raw"])[step];
    keep[head.layer][head.head] = false;
    remove_heads(*model, HeadMask(keep));
  }
  testing::expect_golden(at::tensor(losses, at::kDouble), golden, "loss_raw");
}

TEST(TopFractionTest, KeepsTheLargestOfEveryShare) {
  const at::Tensor values = at::tensor({0.5, -3.0, 2.0, 0.1, 9.0, 0.4, 0.3, 0.2}).reshape({2, 4});
  for (int64_t count = 0; count <= 8; ++count) {
    const HeadMask mask = prune_top_fraction(scores_of(values), {.keep = count / 8.0});
    EXPECT_EQ(mask.count(), count);
    if (count == 0 || count == 8) continue;
    const double least_kept = values.masked_select(mask.keep()).min().item<double>();
    EXPECT_GT(least_kept, values.masked_select(mask.keep().logical_not()).max().item<double>());
  }
  EXPECT_EQ(prune_top_fraction(scores_of(values), {.keep = 0.5, .per_layer = true}),
            HeadMask(at::tensor({1, 0, 1, 0, 1, 1, 0, 0}).reshape({2, 4})));
  EXPECT_EQ(prune_top_fraction(scores_of(values), {.keep = 0.375, .min_per_layer = 1}),
            HeadMask(at::tensor({1, 0, 1, 0, 1, 0, 0, 0}).reshape({2, 4})));
  EXPECT_EQ(prune_top_fraction(scores_of(-values), {.keep = 0.25, .min_per_layer = 1}),
            HeadMask(at::tensor({0, 1, 0, 0, 0, 0, 0, 1}).reshape({2, 4})));
}

TEST(TopFractionTest, TiesGoToTheLowerHead) {
  const HeadMask mask = prune_top_fraction(scores_of(at::zeros({3, 2})), {.keep = 0.5});
  EXPECT_EQ(mask, HeadMask(at::tensor({1, 1, 1, 0, 0, 0}).reshape({3, 2})));
  EXPECT_EQ(removal_order(scores_of(at::zeros({2, 2})))[0], (HeadId{1, 1}));
}

TEST(TopFractionTest, HeadsThatAreGoneAreNeverKept) {
  // Gone heads score 0, more than a harmful head.
  const at::Tensor values = at::tensor({0.0, -1.0, 5.0, 0.0, -2.0, 3.0}).reshape({2, 3});
  const HeadMask left(at::tensor({0, 1, 1, 0, 1, 1}).reshape({2, 3}));
  EXPECT_EQ(prune_top_fraction(scores_of(values), {.keep = 0.5, .candidates = left}),
            HeadMask(at::tensor({0, 1, 1, 0, 0, 1}).reshape({2, 3})));
  EXPECT_EQ(prune_top_fraction(scores_of(values), {.keep = 0.9, .candidates = left}), left);
  EXPECT_EQ(prune_top_fraction(scores_of(values),
                               {.keep = 1.0 / 3, .per_layer = true, .candidates = left}),
            HeadMask(at::tensor({0, 0, 1, 0, 0, 1}).reshape({2, 3})));
}

TEST(TopFractionTest, RefusesWhatDoesNotFit) {
  const HeadScores scores = scores_of(at::zeros({3, 2}));
  EXPECT_THROW(prune_top_fraction(scores, {.keep = 0.4, .min_per_layer = 1}),
               std::invalid_argument);
  EXPECT_THROW(prune_top_fraction(scores, {.keep = 0.4, .per_layer = true, .min_per_layer = 2}),
               std::invalid_argument);
  EXPECT_THROW(prune_top_fraction(scores, {.min_per_layer = -1}), std::invalid_argument);
  EXPECT_THROW(prune_top_fraction(scores, {.candidates = HeadMask::all(2, 3)}),
               std::invalid_argument);
  EXPECT_THROW(prune_top_fraction(scores_of(at::full({3, 2}, NAN))), std::invalid_argument);
}

TEST(PrunerTest, EveryScorerIsAMethod) {
  ASSERT_GE(pruners().size(), scorers().size());
  const auto model = testing::golden_toy_model();
  const BatchList data({testing::golden_toy_batch()});
  for (size_t i = 0; i < scorers().size(); ++i) {
    const PrunerInfo& method = pruners()[i];
    ASSERT_EQ(method.name, scorers()[i].name);
    PruneOptions options;
    options.share.keep = 1.0 / 3;
    options.score.seed = 3;
    const HeadMask mask = prune(*model, data, *cross_entropy(), method.name, options).heads;
    ScoreOptions ranked = options.score;
    if (method.name == "gate_gradient") ranked.normalization = "layer_l2";
    const HeadScores scores =
        make_scorer(method.name)->score(*model, data, *cross_entropy(), ranked);
    EXPECT_EQ(mask, prune_top_fraction(scores, options.share)) << method.name;
    EXPECT_EQ(mask.count(), 2) << method.name;
    EXPECT_FALSE(method.definition.empty() || method.source.empty() || method.cost.empty());
  }
  EXPECT_THROW(find_pruner("nonsense"), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
