#include "headkit/gates/subset_gates.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <nlohmann/json.hpp>

#include "support/golden.h"

namespace headkit {
namespace {

using testing::expect_golden;
using testing::golden_case;
using testing::golden_tensor;

at::Tensor random_scores(int64_t count, uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn({count}, generator, at::kDouble);
}

TEST(RelaxedSubsetTest, GoldenByTemperature) {
  const auto& golden = golden_case("subset.relaxed_topk");
  const at::Tensor r = golden_tensor(golden["inputs"]["r"]);
  for (const std::string temperature : golden["inputs"]["temperature"]) {
    expect_golden(relaxed_subset(r, 2, std::stod(temperature)), golden, temperature);
  }
}

TEST(RelaxedSubsetTest, GoldenSizesAndLimits) {
  const auto& one = golden_case("subset.relaxed_mask_exceeds_one");
  expect_golden(relaxed_subset(golden_tensor(one["inputs"]["r"]), 2, 1), one, "mask");
  const auto& all = golden_case("subset.k_equals_n");
  const at::Tensor mask = relaxed_subset(golden_tensor(all["inputs"]["r"]), 4, 1);
  expect_golden(mask, all, "mask");
  expect_golden(mask.sum(), all, "total");
  const auto& cold = golden_case("subset.cold_limit");
  std::vector<at::Tensor> masks;
  for (int64_t k : cold["inputs"]["k"]) {
    masks.push_back(relaxed_subset(golden_tensor(cold["inputs"]["r"]), k, 1e-8));
  }
  expect_golden(at::stack(masks), cold, "mask");
}

TEST(RelaxedSubsetTest, GoldenGradient) {
  const auto& golden = golden_case("subset.relaxed_topk_gradient");
  const at::Tensor c = golden_tensor(golden["inputs"]["c"]);
  for (const std::string temperature : golden["inputs"]["temperature"]) {
    const at::Tensor r = golden_tensor(golden["inputs"]["r"]).set_requires_grad(true);
    const at::Tensor loss = (c * relaxed_subset(r, 2, std::stod(temperature))).sum();
    const at::Tensor gradient = torch::autograd::grad({loss}, {r})[0];
    expect_golden(gradient, golden, temperature);
    EXPECT_NEAR(gradient.sum().item<double>(), 0, 1e-9);
  }
}

// Trap 15: sums to K and stays finite, for every K and temperature.
TEST(RelaxedSubsetTest, SumsToKAtEveryTemperature) {
  const at::Tensor scores = random_scores(12, 0);
  for (double t : {1000.0, 10.0, 1.0, 0.1, 1e-3, 1e-8}) {
    for (int64_t k = 0; k <= 12; ++k) {
      const at::Tensor r = scores.clone().set_requires_grad(true);
      const at::Tensor mask = relaxed_subset(r, k, t);
      EXPECT_NEAR(mask.sum().item<double>(), static_cast<double>(k), 1e-9) << k << " at " << t;
      EXPECT_TRUE((mask >= 0).all().item<bool>());
      const at::Tensor gradient = torch::autograd::grad({(mask * scores).sum()}, {r})[0];
      EXPECT_TRUE(gradient.isfinite().all().item<bool>()) << k << " at " << t;
    }
  }
}

TEST(RelaxedSubsetTest, ColdIsTheHardChoiceAlsoForManyHeads) {
  const at::Tensor scores = random_scores(144, 1);
  for (int64_t k : {0, 1, 12, 72, 143, 144}) {
    EXPECT_TRUE(at::allclose(relaxed_subset(scores, k, 1e-8), hard_subset(scores, k), 0, 1e-9));
  }
}

// Trap 15: a strict comparison with the (k+1)-th score keeps fewer with ties and fails at K = N.
TEST(HardSubsetTest, HasExactlyKOnesAlsoWithTies) {
  const auto& golden = golden_case("subset.straight_through");
  std::vector<at::Tensor> masks;
  for (size_t i = 0; i < golden["inputs"]["k"].size(); ++i) {
    masks.push_back(
        hard_subset(golden_tensor(golden["inputs"]["scores"][i]), golden["inputs"]["k"][i]));
  }
  expect_golden(at::stack(masks), golden, "mask");
  const at::Tensor ties = at::zeros({3, 5}, at::kDouble);
  for (int64_t k = 0; k <= 15; ++k) {
    const at::Tensor mask = hard_subset(ties, k);
    EXPECT_EQ(mask.sum().item<int64_t>(), k);
    EXPECT_TRUE((mask.flatten().slice(0, 0, k) == 1).all().item<bool>());
  }
  EXPECT_THROW(hard_subset(ties, 16), std::invalid_argument);
  EXPECT_THROW(hard_subset(ties, -1), std::invalid_argument);
  EXPECT_THROW(relaxed_subset(ties.to(at::kFloat), 2, 1), std::invalid_argument);
  EXPECT_THROW(relaxed_subset(ties, 2, 0), std::invalid_argument);
}

TEST(TemperatureScheduleTest, Golden) {
  const auto& golden = golden_case("subset.temperature_schedule");
  const auto& in = golden["inputs"];
  const TemperatureSchedule schedule{in["t0"], in["t1"], in["cooldown_steps"]};
  std::vector<double> found;
  for (int64_t step : in["steps"]) found.push_back(schedule.at(step));
  expect_golden(at::tensor(found, at::kDouble), golden, "temperature");
  const double one = golden["expected"]["step_t_equals_1"];
  EXPECT_GT(schedule.at(static_cast<int64_t>(one)), 1);
  EXPECT_LT(schedule.at(static_cast<int64_t>(one) + 1), 1);
}

TEST(SubsetGatesTest, NoiseIncludesHeadsAsOftenAsPlackettLuceSays) {
  const auto& golden = golden_case("subset.gumbel_inclusion");
  SubsetGates gates({.layers = 2, .heads = 2, .keep = 2, .straight_through = true});
  gates.set_parameter(
      "w", golden_tensor(golden["inputs"]["weights"]).to(at::kDouble).log().reshape({2, 2}));
  const at::Generator generator = at::detail::createCPUGenerator(5);
  constexpr int kDraws = 20000;
  at::Tensor included = at::zeros({2, 2}, at::kDouble);
  for (int i = 0; i < kDraws; ++i) included += gates.sample(0, 1, generator).heads;
  const at::Tensor expected = golden_tensor(golden["expected"]["inclusion"]).reshape({2, 2});
  EXPECT_TRUE(at::allclose(included / kDraws, expected, 0, 4 * 0.5 / std::sqrt(1.0 * kDraws)));
}

// Trap 15: published code keeps the noise on while it validates.
TEST(SubsetGatesTest, NoNoiseInUse) {
  SubsetGates gates({.layers = 2, .heads = 3, .keep = 4});
  gates.set_parameter("w", random_scores(6, 2).reshape({2, 3}).set_requires_grad(true));
  const at::Generator generator = at::detail::createCPUGenerator(5);
  EXPECT_TRUE(at::equal(gates.soft(10).heads, gates.soft(10).heads));
  EXPECT_FALSE(at::equal(gates.sample(0, 1, generator).heads, gates.sample(0, 1, generator).heads));
  EXPECT_TRUE(at::equal(gates.hard().heads, hard_subset(gates.parameters()[0].value, 4)));
}

TEST(SubsetGatesTest, StraightThroughHasHardValuesAndIdentityGradient) {
  SubsetGates gates({.layers = 2, .heads = 3, .keep = 2, .straight_through = true});
  const at::Generator generator = at::detail::createCPUGenerator(5);
  const GateSet sampled = gates.sample(0, 1, generator);
  EXPECT_FALSE(sampled.skip);
  EXPECT_EQ((sampled.heads == 1).sum().item<int64_t>(), 2);
  EXPECT_EQ((sampled.heads == 0).sum().item<int64_t>(), 4);
  const at::Tensor c = random_scores(6, 3).reshape({2, 3});
  const at::Tensor gradient =
      torch::autograd::grad({(c * sampled.heads).sum()}, {gates.parameters()[0].value})[0];
  EXPECT_TRUE(at::equal(gradient, c));
}

// Trap 15: gates above 1.
TEST(SubsetGatesTest, ClippedGatesNeverExceedOne) {
  const at::Generator generator = at::detail::createCPUGenerator(7);
  SubsetGates clipped({.layers = 4, .heads = 6, .keep = 12, .temperature = {1, 0.1, 10}});
  SubsetGates plain(
      {.layers = 4, .heads = 6, .keep = 12, .temperature = {1, 0.1, 10}, .clip = false});
  bool exceeded = false;
  for (int i = 0; i < 20; ++i) {
    EXPECT_LE(clipped.sample(0, 1, generator).heads.max().item<double>(), 1);
    exceeded = exceeded || plain.sample(0, 1, generator).heads.max().item<double>() > 1;
  }
  EXPECT_TRUE(exceeded);
  EXPECT_THROW(SubsetGates({.layers = 2, .heads = 3, .keep = 7}), std::invalid_argument);
  EXPECT_THROW(SubsetGates({.layers = 2, .heads = 3, .keep = 2, .temperature = {0, 1, 10}}),
               std::invalid_argument);
}

}  // namespace
}  // namespace headkit
