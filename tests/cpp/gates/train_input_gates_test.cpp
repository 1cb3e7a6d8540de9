#include "headkit/gates/train_input_gates.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "headkit/gates/mask_policy.h"
#include "headkit/gates/run_policy.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

// A model in which a token says which of four heads of layer `needed_layer` carries the label: its
// dimension 4 + h holds +-1, the others noise, and head h moves that dimension to the classifier's.
// Heads of other layers write nothing.
constexpr int64_t kHeads = 4, kWidth = 2 * kHeads + 1;

std::shared_ptr<testing::ToyModel> planted_model(int64_t layers, int64_t needed_layer) {
  std::vector<AttentionWeights> all;
  for (int64_t l = 0; l < layers; ++l) {
    AttentionWeights w;
    w.q = at::zeros({kHeads, kWidth}, at::kDouble);
    w.k = at::zeros({kHeads, kWidth}, at::kDouble);
    w.v = at::zeros({kHeads, kWidth}, at::kDouble);
    w.o = at::zeros({kWidth, kHeads}, at::kDouble);
    w.q_bias = w.k_bias = w.v_bias = at::zeros({kHeads}, at::kDouble);
    w.o_bias = at::zeros({kWidth}, at::kDouble);
    for (int64_t h = 0; h < kHeads && l == needed_layer; ++h) {
      w.v[h][kHeads + h] = 1;
      w.o[kWidth - 1][h] = 1;
    }
    all.push_back(w);
  }
  at::Tensor classifier = at::zeros({2, kWidth}, at::kDouble);
  classifier[0][kWidth - 1] = -8;
  classifier[1][kWidth - 1] = 8;
  return std::make_shared<testing::ToyModel>(HeadLayout{layers, kHeads, 1, kWidth, 0},
                                             std::move(all), classifier,
                                             at::zeros({2}, at::kDouble));
}

struct Planted {
  Batch batch;
  at::Tensor needed;  // int64 [n]
};

Planted planted_batch(int64_t examples, uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  constexpr int64_t kTokens = 3;
  const at::Tensor needed = at::randint(0, kHeads, {examples}, generator, at::kLong);
  const at::Tensor labels = at::randint(0, 2, {examples}, generator, at::kLong);
  at::Tensor x = at::randn({examples, kTokens, kWidth}, generator, at::kDouble) * 0.03;
  x.select(2, kWidth - 1).zero_();
  for (int64_t b = 0; b < examples; ++b) {
    const int64_t h = needed[b].item<int64_t>();
    x[b][0][h] += 3;  // the token that says which
    x[b].select(1, kHeads + h) += labels[b].item<int64_t>() * 2 - 1;
  }
  return {{{"x", x}, {"labels", labels}}, needed};
}

BatchList planted_data(int64_t batches, uint64_t seed) {
  std::vector<Batch> all;
  for (int64_t i = 0; i < batches; ++i) {
    all.push_back(planted_batch(32, seed + static_cast<uint64_t>(i)).batch);
  }
  return BatchList(std::move(all));
}

double accuracy(const at::Tensor& output, const Batch& batch) {
  return output.argmax(1).eq(batch.at("labels")).to(at::kDouble).mean().item<double>();
}

TrainInputGatesOptions planted_options(int64_t layers) {
  TrainInputGatesOptions options;
  options.gates.budget = 1.0 / static_cast<double>(kHeads * layers);
  options.steps = 250;
  options.seed = 1;
  return options;
}

TEST(TrainInputGates, FindsTheHeadsThatAnInputNeeds) {
  const auto model = planted_model(1, 0);
  const BatchList train = planted_data(8, 10), calibration = planted_data(6, 100);
  const Planted test = planted_batch(400, 7);
  for (const GateRelaxation relaxation :
       {GateRelaxation::kStraightThrough, GateRelaxation::kHardConcrete}) {
    TrainInputGatesOptions options = planted_options(1);
    options.gates.relaxation = relaxation;
    const LinearGate start = static_linear_gate(*model, at::zeros({1, kHeads}, at::kDouble), 1);
    const TrainedLinearGate trained =
        train_input_gates(*model, start, train, calibration, *kl_to_dense(), options);
    const PolicyRun run = run_policy(*model, test.batch, *trained.gate);
    const at::Tensor open = run.gates.heads.squeeze(1);
    const at::Tensor needed_open = open.gather(1, test.needed.unsqueeze(1));
    EXPECT_GE(needed_open.mean().item<double>(), 0.95);
    EXPECT_GE(accuracy(run.output, test.batch), 0.95);
    EXPECT_LE(run.heads_run.to(at::kDouble).mean().item<double>(), 1.1);
    for (int64_t h = 0; h < kHeads; ++h) {  // every static mask of the same budget
      at::Tensor keep = at::zeros({1, kHeads}, at::kBool);
      keep[0][h] = true;
      const PolicyRun fixed = run_policy(*model, test.batch, MaskPolicy(HeadMask(keep)));
      EXPECT_LT(accuracy(fixed.output, test.batch), 0.8);
    }
    EXPECT_GT(trained.report.input_variance, 0.3);
    EXPECT_EQ(trained.report.contested, kHeads);
    EXPECT_LT(trained.report.hard_loss, 0.5 * trained.report.static_loss);
    EXPECT_TRUE(trained.report.warning.empty()) << trained.report.warning;
  }
}

TEST(TrainInputGates, FindsThemInALaterLayerBeforeThatLayer) {
  const auto model = planted_model(2, 1);
  const BatchList train = planted_data(8, 20), calibration = planted_data(6, 200);
  const Planted test = planted_batch(400, 8);
  const LayerGate start = static_layer_gate(*model, at::zeros({2, kHeads}, at::kDouble), 1);
  const TrainedLayerGate trained =
      train_input_gates(*model, start, train, calibration, *kl_to_dense(), planted_options(2));
  const PolicyRun run = run_policy(*model, test.batch, *trained.gate);
  const at::Tensor needed_open = run.gates.heads.select(1, 1).gather(1, test.needed.unsqueeze(1));
  EXPECT_GE(needed_open.mean().item<double>(), 0.95);
  EXPECT_GE(accuracy(run.output, test.batch), 0.95);
  EXPECT_LE(run.heads_run.to(at::kDouble).mean().item<double>(), 1.1);
}

const HeadLayout kLayout{3, 2, 2, 5, 0};

template <typename Gate>
Gate random_start(GatedModel& model);

template <>
LinearGate random_start(GatedModel& model) {
  at::manual_seed(4);
  LinearGateSettings settings =
      static_linear_gate(model, at::randn({3, 2}, at::kDouble), 4).settings();
  settings.weight = at::randn({3, 2, 6}, at::kDouble) * 0.3;
  settings.reference = at::randn({6}, at::kDouble) * 0.3;
  settings.features = {"log_length"};
  settings.dropped_output = at::randn({3, 2, 5}, at::kDouble);
  return LinearGate(settings);
}

template <>
LayerGate random_start(GatedModel& model) {
  at::manual_seed(4);
  LayerGateSettings settings =
      static_layer_gate(model, at::randn({3, 2}, at::kDouble), 4).settings();
  settings.weight = at::randn({3, 2, 9}, at::kDouble) * 0.3;
  settings.reference = at::randn({3, 9}, at::kDouble) * 0.3;
  settings.features = {"log_length", "margin", "entropy", "log_loss"};
  for (int64_t l = 0; l < 3; ++l) {
    settings.probes.push_back(
        LinearProbe({l, at::randn({5}, at::kDouble), at::randn({3, 5}, at::kDouble),
                     at::randn({3}, at::kDouble), at::randn({5}, at::kDouble), 0.1}));
  }
  settings.dropped_output = at::randn({3, 2, 5}, at::kDouble);
  return LayerGate(settings);
}

template <typename Gate>
class InputGatesTest : public ::testing::Test {};
using Kinds = ::testing::Types<LinearGate, LayerGate>;
TYPED_TEST_SUITE(InputGatesTest, Kinds);

template <typename Gate>
std::vector<at::Tensor> unit_scales(const Gate& gate) {
  const at::Tensor& reference = gate.settings().reference;
  const int64_t stops = reference.dim() == 1 ? 1 : reference.size(0);
  return std::vector<at::Tensor>(static_cast<size_t>(stops),
                                 at::full({reference.size(-1)}, 0.7, at::kDouble));
}

TYPED_TEST(InputGatesTest, GradientsAreThoseOfFiniteDifferences) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 6, 5, 3, 1);
  const TypeParam start = random_start<TypeParam>(*model);
  const auto objective = cross_entropy();
  InputGateSettings settings{.budget = 0.4, .relaxation = GateRelaxation::kHardConcrete};
  settings.weight_penalty = 0.1;
  settings.ramp_steps = 10;
  settings.costs = at::rand({3, 2}, at::kDouble) + 0.5;
  const InputGates gates(start, unit_scales(start), settings);
  for (const GateParameter& each : gates.parameters()) {
    if (each.ascend) each.value.detach().fill_(0.8);
  }
  const ModelState state = model->embed(batch);
  const auto loss = [&] {
    const InputGates::Run run = gates.run(*model, state, at::detail::createCPUGenerator(3));
    return objective->loss(run.output, batch, {}).mean() + gates.penalty(run.open, 4);
  };
  std::vector<at::Tensor> values;
  for (const GateParameter& each : gates.parameters()) values.push_back(each.value);
  const auto gradients = torch::autograd::grad({loss()}, values, {}, std::nullopt, false, true);
  const at::NoGradGuard no_grad;
  int64_t checked = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    at::Tensor flat = values[i].detach().view({-1});
    for (int64_t j = 0; j < flat.numel(); ++j) {
      constexpr double kStep = 1e-6;
      const double at_point = flat[j].item<double>();
      flat[j] = at_point + kStep;
      const double above = loss().template item<double>();
      flat[j] = at_point - kStep;
      const double below = loss().template item<double>();
      flat[j] = at_point;
      const double slope = (above - below) / (2 * kStep);
      EXPECT_NEAR(gradients[i].flatten()[j].template item<double>(), slope,
                  1e-6 + 1e-5 * std::abs(slope))
          << gates.parameters()[i].name << " " << j;
      checked += std::abs(slope) > 1e-4;
    }
  }
  EXPECT_GT(checked, 10) << "hardly any gradient to check";
}

TYPED_TEST(InputGatesTest, StartDecidingAsTheGateTheyCameFrom) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 40, 5, 3, 1);
  const TypeParam start = random_start<TypeParam>(*model);
  const InputGates gates(start, unit_scales(start), {.budget = 0.5});
  const PolicyRun expected = run_policy(*model, batch, start);
  const InputGates::Run run = gates.run(*model, model->embed(batch), at::Generator());
  EXPECT_TRUE(at::equal((run.logits >= 0).to(at::kDouble), expected.gates.heads));
  EXPECT_TRUE(at::allclose(run.output, expected.output, 1e-9, 1e-9));
}

TEST(TrainInputGates, WithoutWeightsEqualsStaticPruningExactly) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 20, 5, 3, 1);
  const at::Tensor scores = at::tensor({1., 5., 5., 2., 0., 5.}, at::kDouble).reshape({3, 2});
  const HeadMask mask(at::tensor({0, 1, 1, 0, 0, 0}).reshape({3, 2}));  // ties to the lower head
  const PolicyRun fixed = run_policy(*model, batch, MaskPolicy(mask));
  const PolicyRun linear = run_policy(*model, batch, static_linear_gate(*model, scores, 2));
  const PolicyRun layer = run_policy(*model, batch, static_layer_gate(*model, scores, 2));
  EXPECT_TRUE(at::equal(linear.output, fixed.output));
  EXPECT_TRUE(at::equal(layer.output, fixed.output));
  EXPECT_THROW(static_linear_gate(*model, scores, 7), std::invalid_argument);
}

TEST(TrainInputGates, SaysSoWhereTheGateBecameStatic) {
  const auto model = planted_model(1, 0);
  const BatchList data = planted_data(3, 30);
  TrainInputGatesOptions options = planted_options(1);
  options.steps = 5;
  options.weight_learning_rate = 0;
  const LinearGate start = static_linear_gate(*model, at::zeros({1, kHeads}, at::kDouble), 1);
  const TrainedLinearGate trained =
      train_input_gates(*model, start, data, data, *kl_to_dense(), options);
  EXPECT_NE(trained.report.warning.find("became static"), std::string::npos);
  EXPECT_EQ(trained.report.input_variance, 0);
  EXPECT_NEAR(trained.report.hard_loss, trained.report.static_loss, 1e-12);
}

TEST(TrainInputGates, TheSameSeedGivesTheSameGate) {
  const auto model = planted_model(1, 0);
  const BatchList data = planted_data(3, 30);
  TrainInputGatesOptions options = planted_options(1);
  options.steps = 12;
  options.compensate = true;
  const LinearGate start = static_linear_gate(*model, at::zeros({1, kHeads}, at::kDouble), 1);
  const auto trained = [&] {
    return train_input_gates(*model, start, data, data, *kl_to_dense(), options);
  };
  const TrainedLinearGate first = trained();
  EXPECT_EQ(trained().gate->to_json(), first.gate->to_json());
  EXPECT_TRUE(first.gate->settings().dropped_output.defined());
  EXPECT_EQ(first.report.loss.size(), 12u);
  options.seed = 2;
  EXPECT_NE(trained().gate->to_json(), first.gate->to_json());
}

TEST(TrainInputGates, TrainsTheModelTooOrPutsItBack) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const auto teacher = testing::random_toy_model(kLayout, 3, 7);
  for (const auto& [name, value] : model->parameters()) value.set_requires_grad(true);
  const BatchList data({testing::random_toy_batch(kLayout, 20, 5, 3, 1)});
  const LinearGate start = static_linear_gate(*model, at::randn({3, 2}, at::kDouble), 3);
  TrainInputGatesOptions options;
  options.gates.budget = 0.5;
  options.steps = 30;
  const std::string before = model->fingerprint();
  train_input_gates(*model, start, data, data, *kl_to_dense(), options);
  EXPECT_EQ(model->fingerprint(), before) << "frozen";

  options.model_learning_rate = 1e-2;
  EXPECT_THROW(train_input_gates(*model, start, data, data, *kl_to_dense(), options),
               std::invalid_argument)
      << "no teacher";
  options.teacher = teacher.get();
  options.progress = [](int64_t done, int64_t) {
    if (done == 3) throw std::runtime_error("interrupted");
  };
  EXPECT_THROW(train_input_gates(*model, start, data, data, *kl_to_dense(), options),
               std::runtime_error);
  EXPECT_EQ(model->fingerprint(), before) << "put back";
  options.progress = {};
  const auto joint = train_input_gates(*model, start, data, data, *kl_to_dense(), options);
  EXPECT_NE(model->fingerprint(), before);
  EXPECT_LT(joint.report.loss.back(), joint.report.loss.front());
}

TEST(TrainInputGates, RefusesWhatDoesNotFit) {
  const auto model = planted_model(1, 0);
  const BatchList data = planted_data(1, 30);
  const LinearGate start = static_linear_gate(*model, at::zeros({1, kHeads}, at::kDouble), 1);
  const auto refuses = [&](auto change) {
    TrainInputGatesOptions options = planted_options(1);
    change(options);
    EXPECT_THROW(train_input_gates(*model, start, data, data, *kl_to_dense(), options),
                 std::invalid_argument);
  };
  refuses([](auto& o) { o.gates.budget = 0; });
  refuses([](auto& o) { o.gates.budget = 1.5; });
  refuses([](auto& o) { o.gates.temperature = 0; });
  refuses([](auto& o) { o.gates.costs = at::ones({2, 2}, at::kDouble); });
  refuses([](auto& o) { o.steps = 0; });
  refuses([](auto& o) { o.learning_rate = 0; });
  refuses([](auto& o) { o.settled_share = 0.5; });
  EXPECT_THROW(
      train_input_gates(*model, start, BatchList({}), data, *kl_to_dense(), planted_options(1)),
      std::invalid_argument);
  EXPECT_THROW(train_input_gates(*planted_model(2, 0), start, data, data, *kl_to_dense(),
                                 planted_options(1)),
               std::invalid_argument);
}

}  // namespace
}  // namespace headkit
