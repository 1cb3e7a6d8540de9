#include "headkit/gates/hard_concrete_gates.h"

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

// Calls `value` for the entries of a golden table one by one, because beta differs by entry.
template <typename Value>
at::Tensor by_entry(const nlohmann::json& inputs, const Value& value) {
  const at::Tensor log_alpha = golden_tensor(inputs["log_alpha"]);
  const at::Tensor beta = golden_tensor(inputs["beta"]);
  std::vector<at::Tensor> found;
  for (int64_t i = 0; i < log_alpha.numel(); ++i) {
    const HardConcrete shape{inputs["gamma"], inputs["zeta"], beta[i].item<double>()};
    found.push_back(value(log_alpha[i], shape, i));
  }
  return at::stack(found);
}

TEST(HardConcreteTest, ProbabilitiesAndTestGatesOfTheTable) {
  const auto& golden = golden_case("hard_concrete.table");
  const auto check = [&](const char* key,
                         at::Tensor (*function)(const at::Tensor&, const HardConcrete&)) {
    expect_golden(
        by_entry(golden["inputs"], [&](const at::Tensor& log_alpha, const HardConcrete& shape,
                                       int64_t) { return function(log_alpha, shape); }),
        golden, key);
  };
  check("p_zero", hard_concrete_closed_probability);
  check("p_open", hard_concrete_open_probability);
  check("p_one", hard_concrete_full_probability);
  check("test_gate", hard_concrete_test_gate);
}

TEST(HardConcreteTest, SamplesAndTheirDerivatives) {
  const auto& golden = golden_case("hard_concrete.samples");
  const at::Tensor uniform = golden_tensor(golden["inputs"]["u"]);
  std::vector<at::Tensor> slopes;
  const at::Tensor gates = by_entry(
      golden["inputs"], [&](const at::Tensor& log_alpha, const HardConcrete& shape, int64_t i) {
        const at::Tensor leaf = log_alpha.clone().set_requires_grad(true);
        const at::Tensor gate = hard_concrete_sample(leaf, uniform[i], shape);
        slopes.push_back(torch::autograd::grad({gate}, {leaf})[0]);
        return gate.detach();
      });
  expect_golden(gates, golden, "gate");
  expect_golden(at::stack(slopes), golden, "d_gate_d_log_alpha");
}

TEST(HardConcreteTest, ManySamplesHaveTheProbabilitiesAndMeansOfTheTable) {
  const auto& golden = golden_case("hard_concrete.table");
  const at::Generator generator = at::detail::createCPUGenerator(3);
  constexpr int64_t kSamples = 100000;
  const at::Tensor zero = golden_tensor(golden["expected"]["p_zero"]);
  const at::Tensor one = golden_tensor(golden["expected"]["p_one"]);
  const at::Tensor mean = golden_tensor(golden["expected"]["expected_gate"]);
  by_entry(
      golden["inputs"], [&](const at::Tensor& log_alpha, const HardConcrete& shape, int64_t i) {
        const at::Tensor uniform = at::rand({kSamples}, generator, at::kDouble);
        const at::Tensor gate = hard_concrete_sample(log_alpha.expand({kSamples}), uniform, shape);
        const auto expect_near = [&](const at::Tensor& values, double expected) {
          const double error = 3 * values.std().item<double>() / std::sqrt(1.0 * kSamples);
          EXPECT_NEAR(values.mean().item<double>(), expected, error + 1e-5) << "entry " << i;
        };
        expect_near((gate == 0).to(at::kDouble), zero[i].item<double>());
        expect_near((gate == 1).to(at::kDouble), one[i].item<double>());
        expect_near(gate, mean[i].item<double>());
        return gate.sum();
      });
}

TEST(HardConcreteTest, ZeroAndOneAreMirrorImages) {
  const at::Tensor x = at::linspace(-6, 6, 25, at::kDouble);
  EXPECT_TRUE(at::allclose(hard_concrete_closed_probability(-x), hard_concrete_full_probability(x),
                           1e-12, 1e-12));
  EXPECT_TRUE(at::allclose(hard_concrete_closed_probability(x) + hard_concrete_open_probability(x),
                           at::ones_like(x), 1e-12, 1e-12));
}

// Trap 13: three rules of "open" that published code mixes.
TEST(HardConcreteTest, CountsOpenGatesByEachOfThreeRules) {
  const auto& at_zero = golden_case("hard_concrete.thresholds")["expected"];
  const double test = at_zero["test_gate_zero"], half = at_zero["p_open_half"];
  const double likelier = at_zero["binarise"];
  const auto around = [](double value) { return std::vector<double>{value - 1e-6, value + 1e-6}; };
  std::vector<double> values;
  for (double value : {test, half, likelier}) {
    for (double each : around(value)) values.push_back(each);
  }
  const OpenCounts open = count_open_gates(at::tensor(values, at::kDouble));
  EXPECT_EQ(open.test_gate, 5);
  EXPECT_EQ(open.probability, 3);
  EXPECT_EQ(open.likelier, 1);
  EXPECT_EQ(open.between, 4);
}

TEST(HardConcreteGatesTest, PenaltyIsTheSumOverAllHeads) {
  const auto& golden = golden_case("hard_concrete.penalty");
  HardConcreteGates gates({.layers = 2, .heads = 2, .penalty = 1});
  const at::Tensor log_alpha =
      golden_tensor(golden["inputs"]["log_alpha"]).to(at::kFloat).set_requires_grad(true);
  gates.set_parameter("log_alpha", log_alpha);
  const at::Tensor penalty = gates.penalty(0);
  EXPECT_NEAR(penalty.item<double>(), golden["expected"]["sum_all"].get<double>(), 1e-6);
  EXPECT_TRUE(at::allclose(torch::autograd::grad({penalty}, {log_alpha})[0].to(at::kDouble),
                           golden_tensor(golden["expected"]["grad_sum_all"]), 1e-5, 1e-6));
}

// Trap 13: published code starts with gates of 0.5.
TEST(HardConcreteGatesTest, StartsOpen) {
  const HardConcreteGates gates({.layers = 2, .heads = 3});
  EXPECT_TRUE((gates.soft(0).heads == 1).all().item<bool>());
  const at::Generator generator = at::detail::createCPUGenerator(0);
  double mean = 0;
  for (int i = 0; i < 500; ++i) mean += gates.sample(0, 1, generator).heads.mean().item<double>();
  EXPECT_GT(mean / 500, 0.9);
  EXPECT_THROW(HardConcreteGates({.layers = 2, .heads = 3, .start = 0}), std::invalid_argument);
  EXPECT_THROW(HardConcreteGates({.layers = 2, .heads = 3, .shape = {.gamma = 0.1}}),
               std::invalid_argument);
  EXPECT_THROW(HardConcreteGates({.layers = 0, .heads = 3}), std::invalid_argument);
}

TEST(HardConcreteGatesTest, SamplesOncePerBatchOrOncePerExample) {
  const at::Generator generator = at::detail::createCPUGenerator(0);
  EXPECT_EQ(HardConcreteGates({.layers = 2, .heads = 3}).sample(0, 4, generator).heads.sizes(),
            at::IntArrayRef({2, 3}));
  HardConcreteGates gates({.layers = 2, .heads = 3, .per_example = true});
  gates.set_parameter("log_alpha", at::zeros({2, 3}, at::kFloat));
  const at::Tensor heads = gates.sample(0, 4, generator).heads;
  EXPECT_EQ(heads.sizes(), at::IntArrayRef({4, 2, 3}));
  EXPECT_FALSE(at::equal(heads[0], heads[1]));
  EXPECT_THROW(gates.set_parameter("log_alpha", at::zeros({3, 2}, at::kFloat)),
               std::invalid_argument);
  EXPECT_THROW(gates.set_parameter("w", at::zeros({2, 3}, at::kFloat)), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
