#include "headkit/gates/train_ladder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{2, 3, 2, 6, 0};

std::shared_ptr<testing::ToyModel> trainable_model() {
  auto model = testing::random_toy_model(kLayout, 3, 7);
  for (const auto& [name, value] : model->parameters()) value.set_requires_grad(true);
  return model;
}

Ladder ladder_of(std::initializer_list<std::vector<int64_t>> masks) {
  std::vector<Rung> rungs;
  for (const auto& mask : masks) {
    Rung rung;
    rung.heads = HeadMask(at::tensor(mask).reshape({2, 3}));
    rungs.push_back(rung);
  }
  return Ladder(std::move(rungs));
}

const Ladder three_rungs() {
  return ladder_of({{1, 0, 0, 0, 1, 0}, {1, 1, 0, 0, 1, 0}, {1, 1, 1, 1, 1, 1}});
}

BatchList some_data() {
  return BatchList({testing::random_toy_batch(kLayout, 16, 5, 3, 1),
                    testing::random_toy_batch(kLayout, 12, 4, 3, 2)});
}

// The losses, the sum of gradients and the first step of AdamW, written down.
TEST(TrainLadder, TakesTheStepOfTheFormula) {
  const auto model = trainable_model(), reference = trainable_model();
  const Batch batch = testing::random_toy_batch(kLayout, 16, 5, 3, 1);
  const Ladder ladder = ladder_of({{1, 0, 0, 0, 1, 0}, {1, 1, 1, 1, 1, 1}});
  const auto task = cross_entropy();
  const LadderTraining done =
      train_ladder(*model, ladder, BatchList({batch}), *kl_to_dense(),
                   {.steps = 1, .learning_rate = 1e-2, .max_norm = 0, .task = task.get()});

  const at::Tensor dense = (*testing::random_toy_model(kLayout, 3, 7))(batch);
  const at::Tensor chance = dense.softmax(1);
  const auto kl = [&](const at::Tensor& output) {
    return (chance * (chance.log() - output.log_softmax(1))).sum(1).mean();
  };
  const at::Tensor low =
      (*reference)(batch, GateSet{ladder.rung(0).heads.keep().to(at::kDouble), {}});
  const at::Tensor top = (*reference)(batch);
  const at::Tensor loss = kl(low) + 0.5 * at::cross_entropy_loss(low, batch.at("labels")) + kl(top);
  EXPECT_NEAR(done.low.front(), kl(low).item<double>(), 1e-10);
  EXPECT_NEAR(done.top.front(), kl(top).item<double>(), 1e-10);
  std::vector<at::Tensor> weights;
  for (const auto& [name, value] : reference->parameters()) weights.push_back(value);
  const auto gradients = torch::autograd::grad({loss}, weights, {}, std::nullopt, false, true);
  const auto trained = model->parameters();
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor expected =
        weights[i].detach() * (1 - 1e-2 * 0.01) - 1e-2 * gradients[i] / (gradients[i].abs() + 1e-8);
    // A gradient of rounding size has no sign to speak of.
    const at::Tensor clear = gradients[i].abs() > 1e-7;
    EXPECT_TRUE(at::allclose(trained[i].second.detach().masked_select(clear),
                             expected.masked_select(clear), 1e-6, 1e-8))
        << trained[i].first;
  }
}

TEST(TrainLadder, LowersTheLossOfEveryRungAndKeepsTheTopClose) {
  const auto model = trainable_model();
  const LadderTraining done = train_ladder(*model, three_rungs(), some_data(), *kl_to_dense(),
                                           {.steps = 120, .learning_rate = 3e-3});
  ASSERT_EQ(done.low.size(), 120u);
  ASSERT_EQ(done.drawn.size(), 120u);
  EXPECT_LT(done.low.back(), 0.5 * done.low.front());
  EXPECT_NEAR(done.top.front(), 0, 1e-12) << "the model itself is the dense one";
  EXPECT_LT(done.top.back(), 0.2 * done.low.front());
  EXPECT_EQ(done.rungs, std::vector<int64_t>(120, 1));
}

TEST(TrainLadder, GivesTheSameWithAFrozenCopyAndForTheSameSeed) {
  const Ladder four =
      ladder_of({{1, 0, 0, 0, 1, 0}, {1, 1, 0, 0, 1, 0}, {1, 1, 0, 1, 1, 0}, {1, 1, 1, 1, 1, 1}});
  const auto frozen = testing::random_toy_model(kLayout, 3, 7);
  const auto trained = [&](uint64_t seed, bool copy) {
    const auto model = trainable_model();
    TrainLadderOptions options{.steps = 9, .learning_rate = 1e-3, .seed = seed};
    if (copy) options.dense = [&](const Batch& batch) { return (*frozen)(batch); };
    const auto done = train_ladder(*model, four, some_data(), *kl_to_dense(), options);
    return std::make_pair(model->fingerprint(), done.rungs);
  };
  const auto first = trained(3, false);
  EXPECT_EQ(trained(3, false), first);
  EXPECT_EQ(trained(3, true), first);
  EXPECT_NE(trained(4, false), first);
  for (const int64_t rung : first.second) EXPECT_TRUE(rung == 1 || rung == 2);
}

TEST(TrainLadder, MeasuresCompensationAnew) {
  const auto model = trainable_model();
  std::vector<Rung> rungs = three_rungs().rungs();
  rungs[0].dropped_output = at::zeros({2, 3, 6}, at::kDouble);
  const LadderTraining done = train_ladder(*model, Ladder(rungs), some_data(), *kl_to_dense(),
                                           {.steps = 4, .learning_rate = 1e-3});
  EXPECT_GT(done.ladder.rung(0).dropped_output.abs().sum().item<double>(), 0);
  EXPECT_FALSE(done.ladder.rung(1).dropped_output.defined());
  // Head 1 of layer 0 is closed in rung 0: its mean output there, by hand.
  at::Tensor sum = at::zeros({6}, at::kDouble);
  double tokens = 0;
  const c10::NoGradGuard no_grad;
  some_data().for_each([&](const Batch& batch) {
    Taps seen;
    seen.head_contexts = true;
    model->run(model->embed(batch), 0, 1, {}, &seen);
    const at::Tensor valid = batch.at("attention_mask").to(at::kDouble).unsqueeze(2);
    const at::Tensor output =
        seen.head_context[0].select(2, 1).matmul(model->attention(0).o.slice(1, 2, 4).t());
    sum += (output * valid).sum({0, 1});
    tokens += valid.sum().item<double>();
  });
  EXPECT_TRUE(at::allclose(done.ladder.rung(0).dropped_output[0][1].to(at::kDouble), sum / tokens,
                           1e-6, 1e-8));
}

TEST(TrainLadder, PutsTheModelBackAndRefusesWhatDoesNotFit) {
  const auto model = trainable_model();
  const std::string before = model->fingerprint();
  TrainLadderOptions options{.steps = 5, .learning_rate = 1e-2};
  options.progress = [](int64_t done, int64_t total) {
    EXPECT_EQ(total, 5);
    if (done == 3) throw std::runtime_error("interrupted");
  };
  EXPECT_THROW(train_ladder(*model, three_rungs(), some_data(), *kl_to_dense(), options),
               std::runtime_error);
  EXPECT_EQ(model->fingerprint(), before);
  options.progress = {};
  EXPECT_THROW(train_ladder(*model, three_rungs(), some_data(), *cross_entropy(), options),
               std::invalid_argument);
  EXPECT_THROW(train_ladder(*model, three_rungs(), BatchList({}), *kl_to_dense(), options),
               std::invalid_argument);
  EXPECT_THROW(train_ladder(*model, Ladder(), some_data(), *kl_to_dense(), options),
               std::invalid_argument);
  options.steps = 0;
  EXPECT_THROW(train_ladder(*model, three_rungs(), some_data(), *kl_to_dense(), options),
               std::invalid_argument);
  const auto frozen = testing::random_toy_model(kLayout, 3, 7);
  options.steps = 1;
  EXPECT_THROW(train_ladder(*frozen, three_rungs(), some_data(), *kl_to_dense(), options),
               std::invalid_argument);
}

}  // namespace
}  // namespace headkit
