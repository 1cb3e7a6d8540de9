#include "headkit/gates/train_gates.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <nlohmann/json.hpp>

#include "headkit/gates/hard_concrete_gates.h"
#include "headkit/gates/harden.h"
#include "headkit/gates/subset_gates.h"
#include "support/planted_labels.h"

namespace headkit {
namespace {

using testing::planted_heads;
using testing::PlantedHeads;

constexpr int64_t kNeeded = 3;

std::vector<at::Tensor> copies(const std::vector<std::pair<std::string, at::Tensor>>& values) {
  std::vector<at::Tensor> found;
  for (const auto& [name, value] : values) found.push_back(value.detach().clone());
  return found;
}

bool same(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!at::equal(a[i], b[i])) return false;
  }
  return a.size() == b.size();
}

double mean_loss(GatedModel& model, const std::vector<Batch>& batches, const at::Tensor& heads) {
  GateSet gates;
  gates.heads = heads.to(at::kDouble);
  double sum = 0, count = 0;
  for (const Batch& batch : batches) {
    sum += cross_entropy()->loss(model(batch, gates), batch, {}).sum().item<double>();
    count += static_cast<double>(batch_size(batch));
  }
  return sum / count;
}

TEST(TrainGatesTest, SubsetFindsThePlantedHeads) {
  const PlantedHeads planted = planted_heads(4);
  for (bool straight_through : {false, true}) {
    SubsetGates gates({.layers = 2,
                       .heads = 4,
                       .keep = kNeeded,
                       .temperature = {10, 0.1, 150},
                       .straight_through = straight_through});
    train_gates(*planted.model, gates, BatchList(planted.batches), *cross_entropy(),
                {.steps = 200, .learning_rate = 0.1});
    EXPECT_EQ(HeadMask(gates.hard().heads), planted.needed) << straight_through;
  }
}

TEST(TrainGatesTest, HardConcreteClosesWhatIsNotNeeded) {
  const PlantedHeads planted = planted_heads(4);
  HardConcreteGates gates({.layers = 2, .heads = 4, .penalty = 0.02});
  const GateTraining training = train_gates(*planted.model, gates, BatchList(planted.batches),
                                            *cross_entropy(), {.steps = 250, .learning_rate = 0.1});
  EXPECT_EQ(training.steps(), 250);
  EXPECT_EQ(HeadMask(gates.hard().heads), planted.needed);
}

// Skipping a sampled 0 is exact: the clip has no slope there.
TEST(TrainGatesTest, SkippedHeadsHaveTheGradientOfComputedOnes) {
  const PlantedHeads planted = planted_heads(5);
  HardConcreteGates gates({.layers = 2, .heads = 4});
  gates.set_parameter("log_alpha", at::zeros({2, 4}, at::kFloat).set_requires_grad(true));
  const at::Tensor log_alpha = gates.parameters()[0].value;
  int64_t closed = 0;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const auto gradient = [&](bool skip) {
      GateSet sampled = gates.sample(0, 32, at::detail::createCPUGenerator(seed));
      EXPECT_TRUE(sampled.skip);
      closed += (sampled.heads == 0).sum().item<int64_t>();
      sampled.heads = sampled.heads.to(at::kDouble);
      sampled.skip = skip;
      const Batch& batch = planted.batches[0];
      const at::Tensor loss =
          cross_entropy()->loss((*planted.model)(batch, sampled), batch, {}).mean();
      return torch::autograd::grad({loss}, {log_alpha})[0];
    };
    EXPECT_TRUE(at::allclose(gradient(true), gradient(false), 1e-6, 1e-7));
  }
  EXPECT_GT(closed, 0);
}

TEST(TrainGatesTest, FrozenWeightsStayAndSeedsDecide) {
  const PlantedHeads planted = planted_heads(6);
  const auto before = copies(planted.model->parameters());
  const auto trained = [&](uint64_t seed) {
    SubsetGates gates({.layers = 2, .heads = 4, .keep = kNeeded});
    train_gates(*planted.model, gates, BatchList(planted.batches), *cross_entropy(),
                {.steps = 8, .seed = seed});
    return gates.parameters()[0].value.detach().clone();
  };
  EXPECT_TRUE(at::equal(trained(1), trained(1)));
  EXPECT_FALSE(at::equal(trained(1), trained(2)));
  EXPECT_TRUE(same(before, copies(planted.model->parameters())));
}

TEST(TrainGatesTest, AnInterruptPutsGatesAndWeightsBack) {
  const PlantedHeads planted = planted_heads(6);
  for (const auto& [name, value] : planted.model->parameters()) value.set_requires_grad(true);
  const auto before = copies(planted.model->parameters());
  HardConcreteGates gates({.layers = 2, .heads = 4});
  const auto stop = [](int64_t done, int64_t) {
    if (done == 3) throw std::runtime_error("stop");
  };
  EXPECT_THROW(train_gates(*planted.model, gates, BatchList(planted.batches), *cross_entropy(),
                           {.steps = 5, .weight_learning_rate = 0.01, .progress = stop}),
               std::runtime_error);
  EXPECT_TRUE(same(before, copies(planted.model->parameters())));
  EXPECT_TRUE((gates.parameters()[0].value == 2.5).all().item<bool>());

  train_gates(*planted.model, gates, BatchList(planted.batches), *cross_entropy(),
              {.steps = 5, .weight_learning_rate = 0.01});
  EXPECT_FALSE(same(before, copies(planted.model->parameters())));
  for (const auto& [name, value] : planted.model->parameters())
    EXPECT_FALSE(value.grad().defined());
}

// Trap 15: a joint clip lets an exploding gate gradient starve the weights.
TEST(TrainGatesTest, GatesAreClippedOnTheirOwn) {
  const auto weights_after = [](double max_norm) {
    const PlantedHeads planted = planted_heads(7);
    for (const auto& [name, value] : planted.model->parameters()) value.set_requires_grad(true);
    SubsetGates gates({.layers = 2, .heads = 4, .keep = kNeeded, .temperature = {0.03, 0.03, 1}});
    train_gates(*planted.model, gates, BatchList(planted.batches), *cross_entropy(),
                {.steps = 1, .max_norm = max_norm, .weight_learning_rate = 0.01});
    return copies(planted.model->parameters());
  };
  EXPECT_TRUE(same(weights_after(1e-10), weights_after(0)));
}

TEST(TrainGatesTest, RefusesWhatCannotTrain) {
  const PlantedHeads planted = planted_heads(6);
  const BatchList data(planted.batches);
  HardConcreteGates gates({.layers = 2, .heads = 4});
  GatedModel& model = *planted.model;
  EXPECT_THROW(train_gates(model, gates, data, *cross_entropy(), {}), std::invalid_argument);
  EXPECT_THROW(train_gates(model, gates, data, *cross_entropy(), {.steps = 1, .learning_rate = 0}),
               std::invalid_argument);
  EXPECT_THROW(train_gates(model, gates, BatchList({}), *cross_entropy(), {.steps = 1}),
               std::invalid_argument);
  EXPECT_THROW(
      train_gates(model, gates, data, *cross_entropy(), {.steps = 1, .weight_learning_rate = 0.1}),
      std::invalid_argument);
  for (const auto& [name, value] : model.parameters()) value.set_requires_grad(true);
  EXPECT_THROW(
      train_gates(model, gates, data, *kl_to_dense(), {.steps = 1, .weight_learning_rate = 0.1}),
      std::invalid_argument);
  const PlantedHeads teacher = planted_heads(6);
  const auto before = copies(teacher.model->parameters());
  train_gates(model, gates, data, *kl_to_dense(),
              {.steps = 1, .weight_learning_rate = 0.1, .teacher = teacher.model.get()});
  EXPECT_TRUE(same(before, copies(teacher.model->parameters())));
}

// Trap 14: trained under noise, used without; the gap is reported.
TEST(HardenTest, ReportsTheLossOfEachKindOfGate) {
  const PlantedHeads planted = planted_heads(8);
  HardConcreteGates gates({.layers = 2, .heads = 4});
  const at::Tensor log_alpha =
      at::tensor({-1.0, 0.5, 3.0, -3.0, 1.0, -0.3, 2.6, 0.1}, at::kFloat).reshape({2, 4});
  gates.set_parameter("log_alpha", log_alpha);
  const BatchList data(planted.batches);
  const HardenedGates found =
      harden(*planted.model, gates, data, *cross_entropy(), {.draws = 40, .seed = 3});
  const auto loss = [&](const at::Tensor& heads) {
    return mean_loss(*planted.model, planted.batches, heads);
  };
  EXPECT_NEAR(found.dense_loss, loss(at::ones({2, 4})), 1e-9);
  EXPECT_NEAR(found.soft_loss, loss(hard_concrete_test_gate(log_alpha)), 1e-9);
  EXPECT_NEAR(found.hard_loss, loss(log_alpha > 0), 1e-9);
  EXPECT_EQ(found.heads, HeadMask(log_alpha > 0));
  EXPECT_EQ(found.examples, 192);
  const at::Generator generator = at::detail::createCPUGenerator(11);
  double sampled = 0;
  for (int i = 0; i < 60; ++i) sampled += loss(gates.sample(0, 1, generator).heads) / 60;
  EXPECT_NEAR(found.sampled_loss, sampled, 5 * found.sampled_deviation / std::sqrt(30.0) + 0.02);
  EXPECT_GT(found.sampled_deviation, 0);
  EXPECT_NE(found.soft_loss, found.hard_loss);
  const auto json = nlohmann::json::parse(found.to_json());
  EXPECT_EQ(json["gates"]["open_by_test_gate"], 7);
  EXPECT_EQ(json["gates"]["open_by_probability"], 6);
  EXPECT_EQ(json["gates"]["open_by_likelier_end"], 5);
  EXPECT_EQ(json["gates"]["between"], 2);
}

}  // namespace
}  // namespace headkit
