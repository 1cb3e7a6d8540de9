#include "headkit/gates/cofi_gates.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "headkit/gates/expected_size.h"
#include "headkit/gates/lagrangian.h"
#include "support/golden.h"

namespace headkit {
namespace {

using testing::expect_golden;
using testing::golden_case;
using testing::golden_tensor;

const HeadLayout kLayout{.layers = 2, .heads = 3, .head_dim = 2, .model_dim = 6, .feed_forward = 4};

CofiGates golden_gates() {
  const auto& in = golden_case("cofi.expected_sparsity")["inputs"];
  CofiGates gates({.layout = kLayout, .target_sparsity = in["target"], .hidden = true});
  const auto set = [&](const char* name, const at::Tensor& value) {
    gates.set_parameter(name, value.to(at::kDouble).set_requires_grad(true));
  };
  set("heads", golden_tensor(in["log_alpha_head"]));
  set("attention_sublayers", golden_tensor(in["log_alpha_mha"]));
  set("neurons", golden_tensor(in["log_alpha_int"]));
  set("feed_forward_sublayers", golden_tensor(in["log_alpha_ffn"]));
  set("hidden", golden_tensor(in["log_alpha_hidden"]));
  set("multipliers", at::tensor({in["lambda1"].get<double>(), in["lambda2"].get<double>()}));
  return gates;
}

TEST(CofiGatesTest, GoldenSparsityAndLagrangian) {
  const auto& golden = golden_case("cofi.expected_sparsity");
  const CofiGates gates = golden_gates();
  const at::Tensor sparsity = gates.expected_sparsity();
  expect_golden(sparsity.detach(), golden, "sparsity");
  expect_golden((1 - sparsity.detach()) * full_size(kLayout), golden, "size");
  EXPECT_EQ(full_size(kLayout), golden["expected"]["size_all_open"].get<double>());
  const at::Tensor penalty = gates.penalty(0);
  expect_golden(penalty.detach(), golden, "lagrangian");
  const at::Tensor multipliers = gates.parameters().back().value;
  ASSERT_TRUE(gates.parameters().back().ascend);
  const at::Tensor slopes = torch::autograd::grad({penalty}, {multipliers})[0];
  expect_golden(slopes[0], golden, "d_lambda1");
  expect_golden(slopes[1], golden, "d_lambda2");
  const at::Tensor s = sparsity.detach().clone().set_requires_grad(true);
  const double target = golden["inputs"]["target"];
  expect_golden(torch::autograd::grad({lagrangian(s - target, multipliers.detach())}, {s})[0],
                golden, "d_sparsity");
}

TEST(CofiGatesTest, GoldenInferenceMaskAndClamp) {
  const auto& mask = golden_case("cofi.inference_mask");
  const HardConcrete shape{.beta = mask["inputs"]["beta"]};
  const at::Tensor log_alpha = golden_tensor(mask["inputs"]["log_alpha"]);
  expect_golden(cofi_inference_mask(log_alpha, shape), mask, "mask");
  EXPECT_NEAR(hard_concrete_closed_probability(log_alpha, shape).sum().item<double>(),
              mask["expected"]["expected_zeros"].get<double>(), 1e-9);
  // Rows are groups of their own.
  const at::Tensor rows = at::stack({log_alpha, log_alpha.flip(0)});
  EXPECT_TRUE(at::equal(cofi_inference_mask(rows, shape)[1],
                        cofi_inference_mask(log_alpha, shape).flip(0)));
  const auto& clamp = golden_case("cofi.log_alpha_clamp");
  expect_golden(cofi_clamp(golden_tensor(clamp["inputs"]["log_alpha"])), clamp, "clamped");

  const auto& table = golden_case("hard_concrete.table");
  const at::Tensor values = golden_tensor(table["inputs"]["log_alpha"]);
  const at::Tensor beta = golden_tensor(table["inputs"]["beta"]);
  std::vector<at::Tensor> soft;
  for (int64_t i = 0; i < values.numel(); ++i) {
    soft.push_back(cofi_soft_value(values[i], {.beta = beta[i].item<double>()}));
  }
  expect_golden(at::stack(soft), table, "cofi_soft_value");
}

// Trap 16: weights over weights and biases make a dense model look sparse.
TEST(CofiGatesTest, OneCounterAboveAndBelow) {
  const auto& golden = golden_case("cofi.bert_base_counts");
  const auto& in = golden["inputs"];
  const HeadLayout bert{.layers = in["layers"],
                        .heads = in["heads"],
                        .head_dim = in["d"].get<int64_t>() / in["heads"].get<int64_t>(),
                        .model_dim = in["d"],
                        .feed_forward = in["neurons"]};
  EXPECT_EQ(full_size(bert), golden["expected"]["weights_only"].get<double>());
  const double mixed = 1 - full_size(bert) / golden["expected"]["with_biases"].get<double>();
  EXPECT_NEAR(mixed, golden["expected"]["spurious_sparsity"].get<double>(), 1e-12);
  EXPECT_EQ(expected_size({}, bert).item<double>() / full_size(bert), 1);
}

TEST(ExpectedSizeTest, HardGatesCountTheWeightsThatAreLeft) {
  const HeadLayout layout{
      .layers = 2, .heads = 4, .head_dim = 3, .model_dim = 5, .feed_forward = 7, .kv_heads = 2};
  OpenUnits open;
  open.heads = at::tensor({1, 0, 1, 1, 0, 0, 1, 1}, at::kDouble).reshape({2, 4});
  open.attention_sublayers = at::tensor({1, 0}, at::kDouble);
  open.neurons = at::ones({2, 7}, at::kDouble);
  open.neurons[1][3] = 0;
  open.hidden = at::tensor({1, 1, 0, 1, 1}, at::kDouble);
  // Three heads of layer 0, each with q and o, and half of a k and v head; 7 + 6 gated neurons.
  const double expected = 4 * (3 * 3 * (2 + 1) + 3 * (7 + 6));
  EXPECT_EQ(expected_size(open, layout, 3).item<double>(), expected);
  open.heads = at::ones({4, 2});
  EXPECT_THROW(expected_size(open, layout), std::invalid_argument);
}

// O7: nothing at the target; below it the push towards sparsity grows.
TEST(LagrangianTest, PushesUntilTheTargetIsMet) {
  const at::Tensor zero = at::zeros({}, at::kDouble);
  EXPECT_EQ(lagrangian(zero, at::tensor({3.0, 5.0}, at::kDouble)).item<double>(), 0);
  at::Tensor multipliers = at::zeros({2}, at::kDouble).set_requires_grad(true);
  double first = 0, second = 0;
  for (double sparsity : {0.0, 0.1, 0.2, 0.3, 0.45}) {
    const at::Tensor value = lagrangian(zero + (sparsity - 0.5), multipliers);
    const at::Tensor slope = torch::autograd::grad({value}, {multipliers})[0];
    {
      const c10::NoGradGuard no_grad;
      multipliers += 0.1 * slope;
    }
    EXPECT_LT(multipliers[0].item<double>(), first);
    EXPECT_GE(multipliers[1].item<double>(), second);
    first = multipliers[0].item<double>();
    second = multipliers[1].item<double>();
  }
  EXPECT_EQ(lagrangian(zero - 2, at::tensor({3.0, 5.0}, at::kDouble), true).item<double>(), 26);
  EXPECT_THROW(lagrangian(zero, at::zeros({3})), std::invalid_argument);
  EXPECT_EQ(ramped(0, 0.5, 0, 10), 0);
  EXPECT_EQ(ramped(0, 0.5, 5, 10), 0.25);
  EXPECT_EQ(ramped(0, 0.5, 20, 10), 0.5);
  EXPECT_EQ(ramped(0, 0.5, 0, 0), 0.5);
}

TEST(CofiGatesTest, StartsOpenAndClampsAfterAStep) {
  CofiGates gates({.layout = kLayout});
  EXPECT_EQ(gates.parameters().size(), 5u);
  const at::Generator generator = at::detail::createCPUGenerator(0);
  const GateSet sampled = gates.sample(0, 1, generator);
  EXPECT_EQ(sampled.heads.sizes(), at::IntArrayRef({2, 3}));
  EXPECT_EQ(sampled.neurons.sizes(), at::IntArrayRef({2, 4}));
  EXPECT_EQ(sampled.attention_sublayers.sizes(), at::IntArrayRef({2}));
  EXPECT_FALSE(sampled.hidden.defined());
  EXPECT_GT(sampled.heads.min().item<double>(), 0.99);
  EXPECT_NEAR(gates.expected_sparsity().item<double>(), 0, 1e-3);
  gates.after_step();
  EXPECT_NEAR(gates.parameters()[0].value.max().item<double>(), std::log(100.0), 1e-6);
  EXPECT_THROW(CofiGates({.layout = kLayout, .target_sparsity = 1}), std::invalid_argument);
  EXPECT_THROW(CofiGates({.layout = {.layers = 2, .heads = 3, .head_dim = 2, .model_dim = 6}}),
               std::invalid_argument);
}

TEST(CofiGatesTest, HardGatesKeepSoftValuesAndCloseByGroup) {
  CofiGates gates({.layout = kLayout});
  gates.set_parameter("heads",
                      at::tensor({4.0, -4.0, 1.0, -4.0, -4.0, -3.0}, at::kFloat).reshape({2, 3}));
  gates.set_parameter("attention_sublayers", at::tensor({4.0, -4.0}, at::kFloat));
  const GateSet hard = gates.hard();
  EXPECT_TRUE(at::equal(hard.heads != 0,
                        at::tensor({1, 0, 1, 0, 0, 0}, at::kLong).reshape({2, 3}).to(at::kBool)));
  EXPECT_NEAR(hard.heads[0][2].item<double>(), 1 / (1 + std::exp(-0.8 / (2.0 / 3))), 1e-6);
  EXPECT_EQ(hard.attention_sublayers[1].item<double>(), 0);
  EXPECT_GT(hard.attention_sublayers[0].item<double>(), 0.9);
  const auto json = nlohmann::json::parse(gates.describe(0));
  EXPECT_EQ(json["heads"]["open"], 2);
  EXPECT_EQ(json["attention_sublayers"]["open"], 1);
}

}  // namespace
}  // namespace headkit
