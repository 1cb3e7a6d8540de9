#include "headkit/gates/fixed_target_gates.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <nlohmann/json.hpp>

#include "headkit/gates/train_gates.h"
#include "support/planted_labels.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 2, .model_dim = 6, .feed_forward = 5};

TEST(FixedTargetGatesTest, HardGatesHaveExactlyTheTargetCountsAlsoWithTies) {
  for (int64_t keep = 0; keep <= 12; ++keep) {
    const FixedTargetGates gates({.layout = kLayout, .heads = keep, .neurons = 7});
    EXPECT_EQ(gates.hard().heads.sum().item<int64_t>(), keep);
    EXPECT_EQ(gates.hard().neurons.sum().item<int64_t>(), 7);
    EXPECT_FALSE(gates.hard().attention_sublayers.defined());
  }
  FixedTargetGates even(
      {.layout = kLayout, .heads = 2, .attention_sublayers = 2, .neurons = 3, .per_layer = true});
  const at::Generator generator = at::detail::createCPUGenerator(0);
  even.set_parameter("heads", at::randn({3, 4}, generator, at::kFloat));
  const GateSet hard = even.hard();
  EXPECT_TRUE((hard.heads.sum(1) == 2).all().item<bool>());
  EXPECT_TRUE((hard.neurons.sum(1) == 3).all().item<bool>());
  EXPECT_EQ(hard.attention_sublayers.sum().item<int64_t>(), 2);
}

TEST(FixedTargetGatesTest, EachCountHasALagrangianOfItsOwn) {
  FixedTargetGates gates({.layout = kLayout, .heads = 6, .neurons = 3, .per_layer = false});
  EXPECT_EQ(gates.penalty(0).item<double>(), 0);  // multipliers start at 0
  gates.set_parameter("heads_multipliers",
                      at::tensor({2.0, 3.0}, at::kDouble).set_requires_grad(true));
  const at::Tensor log_alpha = at::linspace(-2, 2, 12, at::kDouble).reshape({3, 4});
  gates.set_parameter("heads", log_alpha.clone().set_requires_grad(true));
  const HardConcrete shape = gates.settings().shape;
  const at::Tensor d = hard_concrete_open_probability(log_alpha, shape).mean() - 0.5;
  EXPECT_NEAR(gates.penalty(0).item<double>(), (2 * d + 3 * d * d).item<double>(), 1e-12);

  FixedTargetGates even({.layout = kLayout, .heads = 2, .per_layer = true});
  even.set_parameter("heads", log_alpha.clone().set_requires_grad(true));
  const at::Tensor multipliers =
      at::tensor({1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, at::kDouble).reshape({2, 3});
  even.set_parameter("heads_multipliers", multipliers);
  const at::Tensor rows = hard_concrete_open_probability(log_alpha, shape).mean(1) - 0.5;
  EXPECT_NEAR(even.penalty(0).item<double>(),
              (multipliers[0] * rows + multipliers[1] * rows * rows).sum().item<double>(), 1e-12);
}

TEST(FixedTargetGatesTest, TrainingMeetsTheTargetAndFindsThePlantedHeads) {
  const testing::PlantedHeads planted = testing::planted_heads(4);
  FixedTargetGates gates({.layout = planted.model->layout(), .heads = 3, .ramp_steps = 210});
  train_gates(*planted.model, gates, BatchList(planted.batches), *cross_entropy(),
              {.steps = 300, .learning_rate = 0.1});
  EXPECT_EQ(HeadMask(gates.hard().heads), planted.needed);
  const auto json = nlohmann::json::parse(gates.describe(300));
  EXPECT_NEAR(json["heads"]["expected_open"].get<double>(), 3, 0.5);
  EXPECT_EQ(json["heads"]["target"], 3);
}

TEST(FixedTargetGatesTest, RefusesCountsThatCannotBe) {
  EXPECT_THROW(FixedTargetGates({.layout = kLayout}), std::invalid_argument);
  EXPECT_THROW(FixedTargetGates({.layout = kLayout, .heads = 13}), std::invalid_argument);
  EXPECT_THROW(FixedTargetGates({.layout = kLayout, .heads = 5, .per_layer = true}),
               std::invalid_argument);
  HeadLayout none = kLayout;
  none.feed_forward = 0;
  EXPECT_THROW(FixedTargetGates({.layout = none, .neurons = 0}), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
