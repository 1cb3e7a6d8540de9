#include "headkit/gates/static_stage.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/toy_model.h"

namespace headkit {
namespace {

TEST(StaticStage, SettlesWhatInputsAgreeOn) {
  // Four inputs; unit 0 is needed by none, 1 by all, 2 by half, 3 by one.
  const at::Tensor needed =
      at::tensor({0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1}).reshape({4, 2, 2}).to(at::kBool);
  const StaticStage stage = static_stage(needed, 0);
  EXPECT_TRUE(at::equal(stage.fixed, at::tensor({-1, 1, 0, 0}, at::kChar).reshape({2, 2})));
  EXPECT_TRUE(at::equal(stage.need, at::tensor({0., 1., .5, .25}, at::kDouble).reshape({2, 2})));
  EXPECT_EQ(stage.pruned, 1);
  EXPECT_EQ(stage.always_on, 1);
  EXPECT_EQ(stage.contested, 2);
  const StaticStage loose = static_stage(needed, 0.25);
  EXPECT_EQ(loose.fixed[1][1].item<int64_t>(), -1);
  at::Tensor present = at::ones({2, 2}, at::kBool);
  present[0][1] = false;
  EXPECT_EQ(static_stage(needed, 0, present).fixed[0][1].item<int64_t>(), -1);
}

TEST(StaticStage, NoneOrAllNeededLeavesNothingContested) {
  const StaticStage none = static_stage(at::zeros({3, 2, 2}, at::kBool));
  EXPECT_EQ(none.pruned, 4);
  const StaticStage all = static_stage(at::ones({3, 2, 2}, at::kBool));
  EXPECT_EQ(all.always_on, 4);
  EXPECT_THROW(static_stage(at::zeros({0, 2, 2}, at::kBool)), std::invalid_argument);
  EXPECT_THROW(static_stage(at::ones({3, 2, 2}, at::kBool), 0.5), std::invalid_argument);
  EXPECT_THROW(static_stage(at::ones({3, 2, 2})), std::invalid_argument);
}

TEST(StaticStage, NeedIsRelativeToTheInputsOwnMean) {
  at::manual_seed(2);
  const at::Tensor importance = at::randn({50, 2, 3}, at::kDouble).exp();
  const at::Tensor needed = needed_units(importance, 2.5);
  EXPECT_EQ(needed.sum().item<int64_t>(), 125);
  // Brute force over thresholds of the relative log importance.
  const double epsilon = 0.01 * importance.mean().item<double>();
  const at::Tensor logs = (importance + epsilon).log();
  const at::Tensor relative = logs - logs.mean({1, 2}, true);
  const double least = relative.masked_select(needed).min().item<double>();
  EXPECT_GT(least, relative.masked_select(needed.logical_not()).max().item<double>());
  EXPECT_FALSE(needed_units(importance, 0).any().item<bool>());
  EXPECT_TRUE(needed_units(importance, 6).all().item<bool>());
  at::Tensor present = at::ones({2, 3}, at::kBool);
  present[1][2] = false;
  const at::Tensor fewer = needed_units(importance, 5, present);
  EXPECT_FALSE(fewer.select(1, 1).select(1, 2).any().item<bool>());
  EXPECT_EQ(fewer.sum().item<int64_t>(), 250);
  EXPECT_THROW(needed_units(importance, 5.5, present), std::invalid_argument);
  EXPECT_THROW(needed_units(importance * NAN, 2), std::invalid_argument);
}

TEST(StaticStage, ImportanceIsTheSlopeOfTheLoss) {
  const HeadLayout layout{2, 3, 2, 5, 0};
  const auto model = testing::random_toy_model(layout, 3, 7);
  const Batch batch = testing::random_toy_batch(layout, 6, 4, 3, 1);
  const auto objective = cross_entropy();
  const at::Tensor dropped = at::randn({2, 3, 5}, at::kDouble);
  const InputImportance found =
      input_importance(*model, BatchList({batch}), *objective, {.dropped_output = dropped});
  ASSERT_EQ(found.heads.sizes(), at::IntArrayRef({6, 2, 3}));
  constexpr double kStep = 1e-6;
  for (int64_t l = 0; l < 2; ++l) {
    for (int64_t h = 0; h < 3; ++h) {
      const auto loss = [&](double gate) {
        GateSet gates{at::ones({2, 3}, at::kDouble), dropped};
        gates.heads[l][h] = gate;
        return objective->loss((*model)(batch, gates), batch, {});
      };
      const at::Tensor slope = (loss(1 + kStep) - loss(1 - kStep)) / (2 * kStep);
      EXPECT_TRUE(at::allclose(found.heads.select(1, l).select(1, h), slope.abs(), 1e-5, 1e-7));
    }
  }
  EXPECT_THROW(input_importance(*model, BatchList({batch}), *kl_to_dense()), std::invalid_argument);
  EXPECT_THROW(input_importance(*model, BatchList({}), *objective), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
