#include "headkit/gates/layer_gate.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "headkit/explain/decision_record.h"
#include "headkit/gates/mask_policy.h"
#include "headkit/gates/run_policy.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 4, 2, 5, 0};
const std::vector<std::string> kScalars{"entropy", "log_length", "margin", "log_loss"};

LinearProbe random_probe(int64_t layer) {
  return LinearProbe({layer, at::randn({5}, at::kDouble), at::randn({3, 5}, at::kDouble),
                      at::randn({3}, at::kDouble), at::randn({5}, at::kDouble), 0.3});
}

LayerGateSettings random_settings(bool scalars) {
  at::manual_seed(3);
  LayerGateSettings settings;
  if (scalars) settings.features = kScalars;
  const int64_t width = scalars ? 9 : 5;
  settings.weight = at::randn({3, 4, width}, at::kDouble);
  settings.reference = at::randn({3, width}, at::kDouble);
  settings.static_logits = at::randn({3, 4}, at::kDouble);
  for (int64_t l = 0; l < 3 && scalars; ++l) settings.probes.push_back(random_probe(l));
  return settings;
}

// The features of one layer, written down in tensor algebra.
at::Tensor plain_features(const ModelState& state, const LayerGateSettings& settings) {
  const at::Tensor valid = state.attention_mask.to(at::kDouble).unsqueeze(2);
  const at::Tensor mean = (state.hidden * valid).sum(1) / valid.sum(1);
  if (settings.features.empty()) return mean;
  const LinearProbeSettings& p = settings.probes.at(static_cast<size_t>(state.layer)).settings();
  const at::Tensor logits = (mean - p.reference).matmul(p.weight.t()) + p.bias;
  const at::Tensor chance = logits.softmax(1);
  const at::Tensor best = std::get<0>(logits.topk(2, 1));
  return at::cat({mean, -(chance * chance.log()).sum(1, true), valid.sum(1).log(),
                  best.slice(1, 0, 1) - best.slice(1, 1, 2),
                  (mean - p.reference).matmul(p.loss_weight).unsqueeze(1) + p.loss_bias},
                 1);
}

struct Walked {
  at::Tensor logits, open, output;
};

Walked plain_walk(GatedModel& model, const Batch& batch, const LayerGateSettings& settings) {
  ModelState state = model.embed(batch);
  GateSet gates;
  gates.heads = at::ones({state.hidden.size(0), 3, 4}, at::kDouble);
  gates.dropped_output = settings.dropped_output;
  std::vector<at::Tensor> logits;
  for (int64_t l = 0; l < 3; ++l) {
    logits.push_back(
        (plain_features(state, settings) - settings.reference[l]).matmul(settings.weight[l].t()) +
        settings.static_logits[l]);
    gates.heads.select(1, l).copy_(logits.back() >= settings.threshold);
    state = model.run(state, l, l + 1, gates);
  }
  return {at::stack(logits, 1), gates.heads, model.head(state)};
}

TEST(LayerGate, DecidesEachLayerByTheFormula) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 30, 7, 3, 1);
  for (const bool scalars : {false, true}) {
    LayerGateSettings settings = random_settings(scalars);
    settings.dropped_output = at::randn({3, 4, 5}, at::kDouble);
    const LayerGate gate(settings);
    const Walked expected = plain_walk(*model, batch, settings);
    EXPECT_TRUE(at::allclose(layer_gate_logits(*model, BatchList({batch}), gate), expected.logits,
                             1e-9, 1e-9));
    const PolicyRun run = run_policy(*model, batch, gate);
    EXPECT_TRUE(at::equal(run.gates.heads, expected.open));
    EXPECT_TRUE(at::allclose(run.output, expected.output, 1e-10, 1e-12));
    EXPECT_TRUE(at::equal(gate.open_heads(expected.logits), expected.open));
    EXPECT_GT(expected.open.var(0, false).sum().item<double>(), 0.5) << "all inputs are alike";
  }
}

TEST(LayerGate, WithoutWeightsIsStaticPruningExactly) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 20, 7, 3, 1);
  LayerGateSettings settings = random_settings(true);
  settings.weight.zero_();
  settings.threshold = 0.1;
  const HeadMask mask(settings.static_logits >= 0.1);
  const PolicyRun dynamic = run_policy(*model, batch, LayerGate(settings));
  const PolicyRun fixed = run_policy(*model, batch, MaskPolicy(mask));
  EXPECT_TRUE(at::equal(dynamic.output, fixed.output));
  EXPECT_TRUE(at::equal(dynamic.heads_run, fixed.heads_run));
  EXPECT_TRUE(at::equal(dynamic.gates.heads, fixed.gates.heads.expand({20, 3, 4})));
}

TEST(LayerGate, IsAskedOnlyWhereSomethingIsContested) {
  LayerGateSettings settings = random_settings(false);
  settings.fixed = at::zeros({3, 4}, at::kChar);
  settings.fixed[0].fill_(1);
  settings.fixed[1].copy_(at::tensor({1, -1, -1, 1}));
  EXPECT_EQ(LayerGate(settings).decision_layers(), (std::vector<int64_t>{0, 2}));
  settings.fixed[0][1] = -1;
  settings.min_heads = 3;
  const LayerGate gate(settings);
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 20, 7, 3, 1);
  const at::Tensor open = run_policy(*model, batch, gate).gates.heads;
  EXPECT_TRUE(at::equal(open.select(1, 0), at::tensor({1., 0., 1., 1.}).expand({20, 4})));
  EXPECT_TRUE(at::equal(open.select(1, 1), at::tensor({1., 0., 0., 1.}).expand({20, 4})));
  EXPECT_GE(open.select(1, 2).sum(1).min().item<double>(), 3) << "the floor of a layer";
  const auto state = gate.start();
  EXPECT_THROW(gate.decide({1, batch.at("x"), {}}, *state), std::invalid_argument);
}

TEST(LayerGate, RecordsAddUpAndReplay) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 12, 20, 3, 8);
  LayerGateSettings settings = random_settings(true);
  settings.dropped_output = at::randn({3, 4, 5}, at::kDouble);
  settings.fixed = at::zeros({3, 4}, at::kChar);
  settings.fixed[1][0] = 1;
  settings.fixed[2][1] = -1;
  settings.calibration = "by hand";
  const LayerGate gate(settings);
  const PolicyRun run = run_policy(*model, batch, gate, {.record = true, .first_input = 5});
  const at::Tensor z = layer_gate_logits(*model, BatchList({batch}), gate);
  const auto records = run.records;
  ASSERT_EQ(records.size(), 12u);
  std::vector<at::Tensor> gates;
  for (size_t b = 0; b < records.size(); ++b) {
    const DecisionRecord& record = records[b];
    EXPECT_EQ(record.input, 5 + static_cast<int64_t>(b));
    EXPECT_EQ(record.heads_run, run.heads_run[b].item<int64_t>());
    for (const HeadDecision& head : record.heads) {
      double sum = *head.base + *head.rest;
      std::vector<std::string> named;
      for (const LogitPart& part : head.parts) {
        sum += part.value;
        if (!part.feature.empty()) {
          named.push_back(part.feature);
        } else {
          EXPECT_TRUE(batch.at("attention_mask")[b][part.token].item<bool>());
        }
      }
      EXPECT_EQ(named.size(), kScalars.size()) << "a part for each scalar";
      EXPECT_NEAR(sum, *head.logit, 1e-5 * std::max(1.0, std::abs(*head.logit)));
      EXPECT_EQ(*head.logit, z[b][head.layer][head.head].item<double>());
    }
    EXPECT_EQ(record.heads[4].state, "always_on");
    EXPECT_EQ(record.heads[9].state, "pruned");
    gates.push_back(record.gates().to(at::kDouble));
  }
  GateSet replayed;
  replayed.heads = at::stack(gates);
  replayed.dropped_output = settings.dropped_output;
  EXPECT_TRUE(at::allclose((*model)(batch, replayed), run.output, 1e-10, 1e-12));
  GatePolicy::State plain;
  plain.record = true;
  EXPECT_THROW(gate.decide({0, batch.at("x"), {}}, plain), std::invalid_argument);
}

TEST(LayerGate, ComesBackFromJsonBitForBit) {
  LayerGateSettings settings = random_settings(true);
  settings.threshold = 0.25;
  const LayerGate gate(settings);
  const auto back = policy_from_json(gate.to_json());
  EXPECT_EQ(back->name(), "layer_gate");
  EXPECT_EQ(back->to_json(), gate.to_json());
  const Batch batch = testing::random_toy_batch(kLayout, 5, 4, 3, 1);
  EXPECT_TRUE(at::equal(dynamic_cast<const LayerGate&>(*back).logits(1, batch.at("x"), {}),
                        gate.logits(1, batch.at("x"), {})));
}

TEST(LayerGate, LambdaRunsMoreTheLargerItIs) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 40, 7, 3, 1);
  LayerGateSettings settings = random_settings(false);
  settings.weight.zero_();
  settings.fixed = at::zeros({3, 4}, at::kChar);
  settings.fixed[2][1] = -1;
  const LayerGate gate(settings);
  double previous = -1;
  for (const double lambda : {0.0, 0.2, 0.5, 0.8, 1.0}) {
    const double heads =
        run_policy(*model, batch, *gate.at(lambda)).heads_run.to(at::kDouble).mean().item<double>();
    EXPECT_GE(heads, previous);
    previous = heads;
  }
  EXPECT_EQ(previous, 11) << "all but the pruned one";
}

TEST(LayerGate, RefusesWhatDoesNotFit) {
  const auto refuses = [](auto change) {
    LayerGateSettings settings = random_settings(true);
    change(settings);
    EXPECT_THROW(LayerGate{settings}, std::invalid_argument);
  };
  refuses([](auto& s) { s.probes.clear(); });
  refuses([](auto& s) { s.probes.pop_back(); });
  refuses([](auto& s) { std::swap(s.probes[0], s.probes[1]); });
  refuses([](auto& s) { s.features[1] = "entropy"; });
  refuses([](auto& s) { s.features[1] = "length"; });
  refuses([](auto& s) { s.reference = s.reference[0]; });
  refuses([](auto& s) { s.static_logits[0][0] = NAN; });
  refuses([](auto& s) { s.min_heads = 5; });
  refuses([](auto& s) { s.fixed = at::full({3, 4}, 2, at::kChar); });
  const LayerGate gate(random_settings(true));
  at::Tensor x = at::ones({1, 2, 5});
  x[0][1][3] = std::numeric_limits<float>::infinity();
  EXPECT_THROW(gate.logits(0, x, {}), std::invalid_argument);
  EXPECT_EQ(gate.logits(2, at::ones({0, 2, 5}), {}).sizes(), at::IntArrayRef({0, 4}));
}

TEST(LayerGate, FitReachesItsBudgetWithAllScalars) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const BatchList train({testing::random_toy_batch(kLayout, 150, 6, 3, 1)});
  const BatchList calibration({testing::random_toy_batch(kLayout, 120, 6, 3, 2)});
  LinearGateFit options;
  options.mean_heads = 7;
  options.features = {"margin", "entropy", "log_length", "log_loss"};
  options.min_heads = 0;
  const FittedLayerGate fitted =
      fit_layer_gate(*model, train, calibration, *cross_entropy(), options);
  const at::Tensor open =
      fitted.gate->open_heads(layer_gate_logits(*model, calibration, *fitted.gate));
  EXPECT_LE(open.sum().item<double>() / 120, 7 + 1e-9);
  EXPECT_GT(open.sum().item<double>() / 120, 6.5);
  EXPECT_NEAR(fitted.report.mean_heads, open.sum().item<double>() / 120, 1e-12);
  EXPECT_EQ(fitted.gate->settings().probes.size(), 3u);
  EXPECT_EQ(fitted.report.contested, (fitted.gate->settings().fixed == 0).sum().item<int64_t>());
}

TEST(LinearGateScalars, BelongToTheFormulaAndTheFile) {
  at::manual_seed(4);
  LinearGateSettings settings;
  settings.features = kScalars;
  settings.probe = random_probe(0);
  settings.weight = at::randn({3, 4, 9}, at::kDouble);
  settings.reference = at::randn({9}, at::kDouble);
  settings.static_logits = at::randn({3, 4}, at::kDouble);
  const LinearGate gate(settings);
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 9, 7, 3, 1);
  LayerGateSettings as_layer;
  as_layer.features = kScalars;
  as_layer.probes = {*settings.probe};
  const at::Tensor features = plain_features(model->embed(batch), as_layer);
  const at::Tensor expected =
      at::einsum("bd,lhd->blh", {features - settings.reference, settings.weight}) +
      settings.static_logits;
  EXPECT_TRUE(
      at::allclose(gate.logits(batch.at("x"), batch.at("attention_mask")), expected, 1e-10, 1e-10));
  EXPECT_EQ(policy_from_json(gate.to_json())->to_json(), gate.to_json());
  const PolicyRun run = run_policy(*model, batch, gate, {.record = true});
  for (const DecisionRecord& record : run.records) {
    for (const HeadDecision& head : record.heads) {
      double sum = *head.base + *head.rest;
      for (const LogitPart& part : head.parts) sum += part.value;
      EXPECT_NEAR(sum, *head.logit, 1e-5 * std::max(1.0, std::abs(*head.logit)));
    }
  }
  settings.probe.reset();
  EXPECT_THROW(LinearGate{settings}, std::invalid_argument);
}

}  // namespace
}  // namespace headkit
