#include "headkit/gates/linear_probe.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "headkit/gates/pooled_state.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 2, 2, 5, 0};

LinearProbeSettings random_settings(int64_t classes) {
  at::manual_seed(3);
  return {1,
          at::randn({5}, at::kDouble),
          at::randn({classes, 5}, at::kDouble),
          at::randn({classes}, at::kDouble),
          at::randn({5}, at::kDouble),
          -0.7};
}

TEST(LinearProbe, ComputesItsFormulas) {
  const Batch batch = testing::random_toy_batch(kLayout, 9, 7, 2, 1);
  const at::Tensor valid = batch.at("attention_mask").to(at::kDouble).unsqueeze(2);
  const at::Tensor mean = (batch.at("x") * valid).sum(1) / valid.sum(1);
  for (int64_t classes : {1, 2, 5}) {
    const LinearProbeSettings settings = random_settings(classes);
    const LinearProbe probe(settings);
    const at::Tensor deviation = mean - settings.reference;
    const at::Tensor logits = deviation.matmul(settings.weight.t()) + settings.bias;
    const ProbeSignals signals = probe.signals(batch.at("x"), batch.at("attention_mask"));
    EXPECT_TRUE(at::allclose(probe.logits(batch.at("x"), batch.at("attention_mask")), logits, 1e-12,
                             1e-12));
    at::Tensor all = logits;
    if (classes == 1) all = at::cat({logits, at::zeros_like(logits)}, 1);
    const at::Tensor best = std::get<0>(all.topk(2, 1));
    const at::Tensor margin = best.select(1, 0) - best.select(1, 1);
    const at::Tensor log_chance = at::log_softmax(all, 1);
    EXPECT_TRUE(at::allclose(signals.margin, margin, 1e-12, 1e-12));
    EXPECT_TRUE(at::allclose(signals.confidence, (margin / 2).tanh(), 1e-12, 1e-12));
    EXPECT_TRUE(
        at::allclose(signals.entropy, -(log_chance.exp() * log_chance).sum(1), 1e-10, 1e-12));
    EXPECT_TRUE(
        at::allclose(signals.log_loss, deviation.matmul(settings.loss_weight) - 0.7, 1e-12, 1e-12));
  }
}

TEST(LinearProbe, SignalsAreThoseOfTheSampleAloneBitForBit) {
  const LinearProbe probe(random_settings(3));
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    Batch batch = testing::random_toy_batch(kLayout, 33, 7, 2, 1);
    batch["x"] = batch.at("x").to(dtype);
    const auto together = [&](const at::Tensor& x, const at::Tensor& mask) {
      const ProbeSignals s = probe.signals(x, mask);
      return at::stack({s.margin, s.confidence, s.entropy, s.log_loss}, 1);
    };
    const at::Tensor expected = together(batch.at("x"), batch.at("attention_mask"));
    const at::Tensor order = at::randperm(33, at::kLong);
    const Batch shuffled = select_examples(batch, order);
    EXPECT_TRUE(at::equal(together(shuffled.at("x"), shuffled.at("attention_mask")),
                          expected.index_select(0, order)));
    const int threads = at::get_num_threads();
    at::set_num_threads(threads == 1 ? 2 : 1);
    EXPECT_TRUE(at::equal(together(batch.at("x"), batch.at("attention_mask")), expected));
    at::set_num_threads(threads);
    const at::Tensor x = at::constant_pad_nd(batch.at("x"), {0, 0, 3, 2}, 1e6);
    const at::Tensor mask =
        at::constant_pad_nd(batch.at("attention_mask").to(at::kLong), {3, 2}).to(at::kBool);
    EXPECT_TRUE(at::equal(together(x, mask), expected));
    const Batch one = select_examples(batch, at::tensor({17}, at::kLong));
    const int64_t length = one.at("attention_mask").sum().item<int64_t>();
    EXPECT_TRUE(at::equal(together(one.at("x").slice(1, 0, length), {})[0], expected[17]));
  }
}

TEST(LinearProbe, TreatsAnInputWithoutTokensAsTheMeanOne) {
  const LinearProbeSettings settings = random_settings(2);
  const LinearProbe probe(settings);
  const at::Tensor nothing = at::zeros({2, 3}, at::kBool);
  EXPECT_TRUE(at::equal(probe.logits(at::ones({2, 3, 5}), nothing),
                        settings.bias.unsqueeze(0).expand({2, 2})));
  EXPECT_EQ(probe.signals(at::ones({0, 3, 5}), {}).margin.size(0), 0);
}

TEST(LinearProbe, RefusesWhatIsNotFiniteOrDoesNotFit) {
  const LinearProbe probe(random_settings(2));
  at::Tensor x = at::ones({2, 3, 5});
  x[1][2][0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(probe.signals(x, {}), std::invalid_argument);
  at::Tensor mask = at::ones({2, 3}, at::kBool);
  mask[1][2] = false;
  EXPECT_NO_THROW(probe.signals(x, mask)) << "padding may hold anything";
  EXPECT_THROW(probe.signals(at::ones({2, 3, 4}), {}), std::invalid_argument);
  LinearProbeSettings settings = random_settings(2);
  settings.bias = at::zeros({3}, at::kDouble);
  EXPECT_THROW(LinearProbe{settings}, std::invalid_argument);
  settings = random_settings(2);
  settings.weight = settings.loss_weight = at::Tensor();
  EXPECT_THROW(LinearProbe{settings}, std::invalid_argument);
}

TEST(LinearProbe, ComesBackFromJsonBitForBit) {
  const LinearProbe probe(random_settings(3));
  const LinearProbe back = LinearProbe::from_json(probe.to_json());
  EXPECT_EQ(back.to_json(), probe.to_json());
  EXPECT_TRUE(at::equal(back.settings().weight, probe.settings().weight));
  EXPECT_THROW(LinearProbe::from_json("{}"), std::invalid_argument);
  EXPECT_THROW(LinearProbe::from_json(R"({"kind": "linear_probe", "version": 2})"),
               std::invalid_argument);
}

// The documented objective, written down in plain autograd.
at::Tensor objective_gradient(const at::Tensor& x, const at::Tensor& labels,
                              const LinearProbeSettings& probe, double ridge) {
  const at::Tensor centred = x - x.mean(0);
  const at::Tensor weight = probe.weight.clone().set_requires_grad(true);
  const double scale = centred.square().mean().item<double>();
  const at::Tensor loss = at::cross_entropy_loss(at::linear(centred, weight, probe.bias), labels) +
                          0.5 * ridge * scale * weight.square().sum();
  loss.backward();
  return weight.grad();
}

TEST(LinearProbe, LogisticRegressionIsAtItsOptimum) {
  at::manual_seed(5);
  for (int64_t classes : {2, 4}) {
    const at::Tensor x = at::randn({60, 5}, at::kDouble) * at::tensor({1., 3., .1, 1., 7.});
    const at::Tensor labels =
        (x.matmul(at::randn({5, classes}, at::kDouble)) + at::randn({60, classes}, at::kDouble))
            .argmax(1);
    for (double ridge : {1.0, 1e-3}) {
      const FittedProbe fitted = fit_linear_probe(0, x, labels, {}, classes, {.ridge = ridge});
      EXPECT_EQ(fitted.ridge, ridge);
      const at::Tensor gradient = objective_gradient(x, labels, fitted.probe.settings(), ridge);
      EXPECT_LT(gradient.abs().max().item<double>(), 1e-6) << classes << " classes, " << ridge;
    }
  }
}

TEST(LinearProbe, FindsAPlantedTaskAndLoss) {
  at::manual_seed(6);
  const at::Tensor x = at::randn({400, 8}, at::kDouble);
  const at::Tensor direction = at::randn({8}, at::kDouble);
  const at::Tensor labels = x.matmul(direction).gt(0.3).to(at::kLong);
  const at::Tensor losses = (x.select(1, 2) * 0.9 - 1).exp();
  const FittedProbe fitted = fit_linear_probe(2, x, labels, losses);
  EXPECT_EQ(fitted.probe.layer(), 2);
  EXPECT_GT(fitted.accuracy, 0.9);
  EXPECT_GT(fitted.loss_explained, 0.9);
  const at::Tensor fresh = at::randn({300, 8}, at::kDouble);
  const at::Tensor said = fitted.probe.logits(fresh.unsqueeze(1), {}).argmax(1).to(at::kDouble);
  EXPECT_GT(said.eq(fresh.matmul(direction).gt(0.3)).to(at::kDouble).mean().item<double>(), 0.95);
  const at::Tensor predicted = fitted.probe.signals_of(fresh).log_loss;
  const at::Tensor truth = fresh.select(1, 2) * 0.9 - 1;
  EXPECT_GT(at::corrcoef(at::stack({predicted, truth}))[0][1].item<double>(), 0.97);
}

TEST(LinearProbe, OneClassAndEqualLossesGiveConstants) {
  at::manual_seed(7);
  const at::Tensor x = at::randn({30, 4}, at::kDouble);
  const FittedProbe fitted =
      fit_linear_probe(0, x, at::ones({30}, at::kLong), at::full({30}, 0.25, at::kDouble));
  EXPECT_TRUE(std::isinf(fitted.ridge));
  const ProbeSignals signals = fitted.probe.signals_of(x);
  EXPECT_TRUE(signals.margin.eq(signals.margin[0]).all().item<bool>());
  EXPECT_NEAR(signals.margin[0].item<double>(), std::log(30.5 / 0.5), 1e-12);
  EXPECT_NEAR(signals.log_loss[3].item<double>(), std::log(0.2525), 1e-12);
  const FittedProbe none = fit_linear_probe(0, x, {}, at::zeros({30}, at::kDouble));
  EXPECT_FALSE(none.probe.has_task());
  EXPECT_TRUE(none.probe.signals_of(x).log_loss.isfinite().all().item<bool>());
  EXPECT_THROW(fit_linear_probe(0, x, {}, {}), std::invalid_argument);
  EXPECT_THROW(fit_linear_probe(0, x, at::full({30}, 2, at::kLong), {}, 2), std::invalid_argument);
  EXPECT_THROW(fit_linear_probe(0, x, {}, at::full({30}, -1.0)), std::invalid_argument);
}

TEST(LinearProbe, IsFittedToTheStatesOfAModelUnderGates) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const BatchList data({testing::random_toy_batch(kLayout, 40, 6, 3, 1),
                        testing::random_toy_batch(kLayout, 41, 4, 3, 2)});
  const auto objective = kl_to_dense();
  LinearProbesFit options{.layers = {0, 2}, .objective = objective.get()};
  options.gates.heads = at::tensor({1., 0., 0., 1., 1., 0.}, at::kDouble).reshape({3, 2});
  std::vector<int64_t> told;
  options.progress = [&](int64_t done, int64_t total) { told.push_back(10 * done + total); };
  const std::vector<FittedProbe> fitted = fit_linear_probes(*model, data, options);
  EXPECT_EQ(told, (std::vector<int64_t>{12, 22}));
  ASSERT_EQ(fitted.size(), 2u);

  std::vector<at::Tensor> states, labels, losses;
  data.for_each([&](const Batch& batch) {
    const ModelState before = model->run(model->embed(batch), 0, 2, options.gates);
    states.push_back(model->pooled(before));
    const at::Tensor dense = (*model)(batch), gated = (*model)(batch, options.gates);
    labels.push_back(dense.argmax(1));
    const at::Tensor chance = dense.softmax(1);
    losses.push_back((chance * (chance.log() - gated.log_softmax(1))).sum(1).clamp_min(0));
  });
  const FittedProbe by_hand =
      fit_linear_probe(2, at::cat(states), at::cat(labels), at::cat(losses), 3);
  const LinearProbeSettings &a = fitted[1].probe.settings(), &b = by_hand.probe.settings();
  EXPECT_EQ(a.layer, 2);
  EXPECT_TRUE(at::allclose(a.reference, b.reference, 1e-10, 1e-10));
  EXPECT_TRUE(at::allclose(a.weight, b.weight, 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(a.loss_weight, b.loss_weight, 1e-5, 1e-6));
  EXPECT_THROW(fit_linear_probes(*model, data, {.layers = {3}}), std::invalid_argument);
  EXPECT_THROW(fit_linear_probes(*model, data, {.layers = {1, 1}}), std::invalid_argument);
  EXPECT_THROW(fit_linear_probes(*model, BatchList({}), {.layers = {1}}), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
