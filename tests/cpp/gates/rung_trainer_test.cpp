#include "headkit/gates/rung_trainer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{2, 3, 2, 6, 0};

std::shared_ptr<testing::ToyModel> trainable_model() {
  auto model = testing::random_toy_model(kLayout, 3, 7);
  for (const auto& [name, value] : model->parameters()) value.set_requires_grad(true);
  return model;
}

Rung rung_of(const std::vector<int64_t>& mask) {
  Rung rung;
  rung.heads = HeadMask(at::tensor(mask).reshape({2, 3}));
  return rung;
}

Batch batch_of(uint64_t seed) { return testing::random_toy_batch(kLayout, 12, 5, 3, seed); }

// Two steps of AdamW on one static rung, that learns from the labels too, written down.
TEST(RungTrainer, TrainsOneStaticRungByTheFormula) {
  const auto model = trainable_model(), reference = trainable_model();
  const Rung rung = rung_of({1, 0, 0, 0, 1, 0});
  const auto task = cross_entropy(), distillation = kl_to_dense();
  RungTrainer trainer(*model, {rung}, *distillation,
                      {.learning_rate = 1e-2,
                       .max_norm = 0.25,
                       .warmup_steps = 2,
                       .total_steps = 4,
                       .task = task.get(),
                       .task_weight = 0.3,
                       .last_without_task = false});
  const std::vector<double> rates{0.5e-2, 1e-2, 2e-2 / 3, 1e-2 / 3, 0};
  std::vector<at::Tensor> weights, mean, square;
  for (const auto& [name, value] : reference->parameters()) {
    weights.push_back(value);
    mean.push_back(at::zeros_like(value.detach()));
    square.push_back(at::zeros_like(value.detach()));
  }
  bool clipped = false;
  for (int64_t step = 0; step < 4; ++step) {
    EXPECT_NEAR(trainer.learning_rate(), rates[static_cast<size_t>(step)], 1e-15);
    const Batch batch = batch_of(static_cast<uint64_t>(step));
    const at::Tensor dense = (*testing::random_toy_model(kLayout, 3, 7))(batch);
    const at::Tensor chance = dense.softmax(1);
    const at::Tensor output = (*reference)(batch, GateSet{rung.heads.keep().to(at::kDouble), {}});
    const at::Tensor distance = (chance * (chance.log() - output.log_softmax(1))).sum(1).mean();
    const auto gradients =
        torch::autograd::grad({distance + 0.3 * at::cross_entropy_loss(output, batch.at("labels"))},
                              weights, {}, std::nullopt, false, true);
    double norm = 0;
    for (const at::Tensor& each : gradients) {
      if (each.defined()) norm += each.square().sum().item<double>();
    }
    const double scale = std::min(1.0, 0.25 / std::sqrt(norm));
    clipped = clipped || scale < 1;
    EXPECT_NEAR(trainer.step(batch, dense, {0}).front(), distance.item<double>(), 1e-9);
    const c10::NoGradGuard no_grad;
    const auto n = static_cast<double>(step + 1);
    const double rate = rates[static_cast<size_t>(step)];
    for (size_t i = 0; i < weights.size(); ++i) {
      if (!gradients[i].defined()) continue;
      const at::Tensor gradient = gradients[i] * scale;
      mean[i] = 0.9 * mean[i] + 0.1 * gradient;
      square[i] = 0.999 * square[i] + 0.001 * gradient * gradient;
      weights[i].mul_(1 - rate * 0.01);
      weights[i].sub_(rate * (mean[i] / (1 - std::pow(0.9, n))) /
                      ((square[i] / (1 - std::pow(0.999, n))).sqrt() + 1e-8));
    }
    for (size_t i = 0; i < weights.size(); ++i) {
      EXPECT_TRUE(at::allclose(trainer.weights()[i], weights[i], 1e-6, 1e-8)) << step << " " << i;
    }
  }
  EXPECT_TRUE(clipped);
  EXPECT_EQ(trainer.steps(), 4);
  EXPECT_EQ(trainer.learning_rate(), rates.back());
}

TEST(RungTrainer, GoesOnBitForBitFromItsState) {
  const auto distillation = kl_to_dense(), task = cross_entropy();
  const std::vector<Rung> rungs{rung_of({1, 0, 0, 0, 1, 0}), rung_of({1, 1, 1, 1, 1, 1})};
  const RungTrainerOptions options{
      .learning_rate = 1e-2, .warmup_steps = 3, .total_steps = 8, .task = task.get()};
  const auto teacher = testing::random_toy_model(kLayout, 3, 8);
  const auto walk = [&](RungTrainer& trainer, int64_t until) {
    while (trainer.steps() < until) {
      const Batch batch = batch_of(static_cast<uint64_t>(trainer.steps()));
      trainer.step(batch, (*teacher)(batch), {0, 1});
    }
  };
  const auto whole = trainable_model(), cut = trainable_model(), again = trainable_model();
  RungTrainer straight(*whole, rungs, *distillation, options);
  walk(straight, 7);
  RungTrainer first(*cut, rungs, *distillation, options);
  walk(first, 4);
  const RungTrainerState state = first.state();
  walk(first, 6);  // what comes after the state does not touch it
  {
    const auto replay = trainable_model();
    RungTrainer to(*replay, rungs, *distillation, options);
    walk(to, 4);
    const c10::NoGradGuard no_grad;
    const auto from = replay->parameters();
    size_t i = 0;
    for (const auto& [name, value] : again->parameters()) value.copy_(from[i++].second);
  }
  RungTrainer second(*again, rungs, *distillation, options);
  second.adopt(state);
  EXPECT_EQ(second.steps(), 4);
  walk(second, 7);
  EXPECT_EQ(again->fingerprint(), whole->fingerprint());
}

TEST(RungTrainer, RefusesWhatDoesNotFitAndLeavesTheWeights) {
  const auto model = trainable_model();
  const std::string before = model->fingerprint();
  const auto distillation = kl_to_dense();
  const std::vector<Rung> rungs{rung_of({1, 0, 0, 0, 1, 0})};
  EXPECT_THROW(RungTrainer(*model, {}, *distillation, {}), std::invalid_argument);
  EXPECT_THROW(RungTrainer(*model, rungs, *cross_entropy(), {}), std::invalid_argument);
  EXPECT_THROW(RungTrainer(*model, rungs, *distillation, {.learning_rate = 0}),
               std::invalid_argument);
  EXPECT_THROW(RungTrainer(*model, rungs, *distillation, {.warmup_steps = 5, .total_steps = 4}),
               std::invalid_argument);
  EXPECT_THROW(
      RungTrainer(*testing::random_toy_model({3, 3, 2, 6, 0}, 3, 7), rungs, *distillation, {}),
      std::invalid_argument);
  EXPECT_THROW(RungTrainer(*testing::random_toy_model(kLayout, 3, 7), rungs, *distillation, {}),
               std::invalid_argument)
      << "nothing to train";
  RungTrainer trainer(*model, rungs, *distillation, {});
  const Batch batch = batch_of(1);
  const at::Tensor dense = (*model)(batch).detach();
  EXPECT_THROW(trainer.step(batch, dense, {1}), std::out_of_range);
  EXPECT_THROW(trainer.step(batch, dense, {}), std::invalid_argument);
  EXPECT_THROW(trainer.step(batch, dense * std::numeric_limits<double>::quiet_NaN(), {0}),
               std::runtime_error);
  RungTrainerState state = trainer.state();
  state.mean.pop_back();
  EXPECT_THROW(trainer.adopt(state), std::invalid_argument);
  state = trainer.state();
  state.square[0] = at::zeros({1}, at::kDouble);
  EXPECT_THROW(trainer.adopt(state), std::invalid_argument);
  EXPECT_EQ(model->fingerprint(), before);
  EXPECT_EQ(trainer.steps(), 0);
}

}  // namespace
}  // namespace headkit
