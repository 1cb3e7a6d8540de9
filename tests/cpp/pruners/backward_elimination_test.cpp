#include "headkit/pruners/backward_elimination.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "headkit/pruners/mean_output.h"
#include "headkit/pruners/removal.h"
#include "support/golden.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 2, .model_dim = 5};

double mean_loss(GatedModel& model, const Batch& batch, const Objective& objective,
                 const at::Tensor& keep, const at::Tensor& dropped = {}) {
  const at::Tensor dense = model(batch);
  GateSet gates;
  gates.heads = keep.to(at::kDouble);
  gates.dropped_output = dropped;
  return objective.loss(model(batch, gates), batch, dense).mean().item<double>();
}

TEST(BackwardEliminationTest, GoldenOrderAndLosses) {
  const auto& golden = testing::golden_case("toy.backward_elimination");
  const auto model = testing::golden_toy_model();
  const StaticPruning pruning = prune_by_elimination(
      *model, BatchList({testing::golden_toy_batch()}), *cross_entropy(), {.share = {.keep = 0}});
  const auto details = nlohmann::json::parse(pruning.details);
  EXPECT_EQ(details["order"], golden["expected"]["order"]);
  testing::expect_golden(at::tensor(details["loss"].get<std::vector<double>>(), at::kDouble),
                         golden, "mean_loss");
  EXPECT_EQ(pruning.heads.count(), 0);
  EXPECT_TRUE(pruning.heads_only());
}

TEST(BackwardEliminationTest, BruteForceBestSubsetsBoundIt) {
  const auto& golden = testing::golden_case("toy.best_subsets");
  const auto model = testing::golden_toy_model();
  const Batch batch = testing::golden_toy_batch();
  for (int64_t kept = 0; kept <= 6; ++kept) {
    double best = INFINITY;
    at::Tensor best_keep;
    for (int64_t bits = 0; bits < 64; ++bits) {
      const at::Tensor keep = at::tensor(bits).bitwise_right_shift(at::arange(6)).remainder(2);
      if (keep.sum().item<int64_t>() != kept) continue;
      const double loss = mean_loss(*model, batch, *cross_entropy(), keep.reshape({2, 3}));
      if (loss < best) std::tie(best, best_keep) = std::pair(loss, keep.reshape({2, 3}));
    }
    const auto& expected = golden["expected"][std::to_string(kept)];
    EXPECT_NEAR(best, expected["mean_loss"], 1e-9);
    EXPECT_EQ(HeadMask(best_keep), HeadMask(testing::golden_tensor(expected["mask"])));
    const StaticPruning found = prune_by_elimination(*model, BatchList({batch}), *cross_entropy(),
                                                     {.share = {.keep = kept / 6.0}});
    EXPECT_GE(mean_loss(*model, batch, *cross_entropy(), found.heads.keep()), best - 1e-12);
  }
}

TEST(BackwardEliminationTest, EveryStepIsTheBestOfAllCandidates) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 7, 6, 3, 2);
  for (const bool compensate : {false, true}) {
    const auto objective = compensate ? kl_to_dense() : cross_entropy();
    const StaticPruning pruning =
        prune_by_elimination(*model,
                             BatchList({select_examples(batch, at::arange(5)),
                                        select_examples(batch, at::arange(5, 7))}),
                             *objective, {.share = {.keep = 0.25}, .compensate = compensate});
    const auto order = nlohmann::json::parse(pruning.details)["order"];
    ASSERT_EQ(order.size(), 9u);
    at::Tensor keep = at::ones({3, 4}, at::kBool);
    for (const auto& gone : order) {
      const at::Tensor dropped =
          compensate ? mean_head_outputs(*model, BatchList({batch}),
                                         {.gates = GateSet::from_mask(HeadMask(keep))})
                     : at::Tensor();
      const auto without = [&](int64_t layer, int64_t head) {
        at::Tensor fewer = keep.clone();
        fewer[layer][head] = false;
        return mean_loss(*model, batch, *objective, fewer, dropped);
      };
      const double chosen = without(gone[0], gone[1]);
      for (int64_t layer = 0; layer < 3; ++layer) {
        for (const int64_t head : HeadMask(keep).layer_heads(layer)) {
          EXPECT_LE(chosen, without(layer, head) + 1e-12);
        }
      }
      keep[gone[0].get<int64_t>()][gone[1].get<int64_t>()] = false;
    }
    EXPECT_EQ(pruning.heads, HeadMask(keep));
    EXPECT_EQ(pruning.heads_only(), !compensate);
    if (!compensate) continue;
    EXPECT_TRUE(at::allclose(
        pruning.gates.dropped_output,
        mean_head_outputs(*model, BatchList({batch}), {.gates = GateSet::from_mask(pruning.heads)}),
        1e-9, 1e-12));
    const double expected =
        mean_loss(*model, batch, *objective, keep, pruning.gates.dropped_output);
    const at::Tensor dense = (*model)(batch);
    apply_pruning(*model, pruning);
    EXPECT_NEAR(objective->loss((*model)(batch), batch, dense).mean().item<double>(), expected,
                1e-12);
  }
}

TEST(BackwardEliminationTest, FloorsStepsAndShortlists) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const BatchList data({testing::random_toy_batch(kLayout, 7, 6, 3, 2)});
  const auto heads = [&](BackwardEliminationOptions options) {
    return prune_by_elimination(*model, data, *cross_entropy(), options).heads;
  };
  const HeadMask even = heads({.share = {.keep = 0.5, .per_layer = true}});
  const HeadMask floor = heads({.share = {.keep = 0.25, .min_per_layer = 1}});
  for (int64_t layer = 0; layer < 3; ++layer) {
    EXPECT_EQ(even.layer_heads(layer).size(), 2u);
    EXPECT_EQ(floor.layer_heads(layer).size(), 1u);
  }
  EXPECT_EQ(heads({.share = {.keep = 0.25}, .step = 4}).count(), 3);
  EXPECT_EQ(heads({.share = {.keep = 0.25}, .step = 2, .shortlist = 3}).count(), 3);
  EXPECT_EQ(heads({.share = {.keep = 0.25}, .shortlist = 12}), heads({.share = {.keep = 0.25}}));
  EXPECT_EQ(heads({.share = {.keep = 1}}).count(), 12);
  EXPECT_THROW(heads({.share = {.keep = 0.1, .min_per_layer = 1}}), std::invalid_argument);
  EXPECT_THROW(heads({.step = 0}), std::invalid_argument);
  EXPECT_THROW(heads({.step = 2, .shortlist = 1}), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
