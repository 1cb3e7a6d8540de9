#include "headkit/gates/linear_gate.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

#include "headkit/explain/decision_record.h"
#include "headkit/gates/run_policy.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 4, 2, 5, 0};

LinearGateSettings random_settings() {
  at::manual_seed(3);
  LinearGateSettings settings;
  settings.weight = at::randn({3, 4, 5}, at::kDouble);
  settings.reference = at::randn({5}, at::kDouble);
  settings.static_logits = at::randn({3, 4}, at::kDouble);
  return settings;
}

GateInput input_of(const Batch& batch) { return {0, batch.at("x"), batch.at("attention_mask")}; }

TEST(LinearGate, ComputesTheFormula) {
  const LinearGateSettings settings = random_settings();
  const Batch batch = testing::random_toy_batch(kLayout, 9, 7, 2, 1);
  const at::Tensor valid = batch.at("attention_mask").to(at::kDouble).unsqueeze(2);
  const at::Tensor mean = (batch.at("x") * valid).sum(1) / valid.sum(1);
  const at::Tensor expected =
      at::einsum("bd,lhd->blh", {mean - settings.reference, settings.weight}) +
      settings.static_logits;
  const LinearGate gate(settings);
  EXPECT_TRUE(
      at::allclose(gate.logits(batch.at("x"), batch.at("attention_mask")), expected, 1e-12, 1e-12));
}

TEST(LinearGate, DecidesForASampleAloneBitForBit) {
  const LinearGate gate(random_settings());
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    Batch batch = testing::random_toy_batch(kLayout, 33, 7, 2, 1);
    batch["x"] = batch.at("x").to(dtype);
    const at::Tensor z = gate.logits(batch.at("x"), batch.at("attention_mask"));
    const at::Tensor order = at::randperm(33, at::kLong);
    const Batch shuffled = select_examples(batch, order);
    EXPECT_TRUE(at::equal(gate.logits(shuffled.at("x"), shuffled.at("attention_mask")),
                          z.index_select(0, order)));
    const int threads = at::get_num_threads();
    at::set_num_threads(threads == 1 ? 2 : 1);
    EXPECT_TRUE(at::equal(gate.logits(batch.at("x"), batch.at("attention_mask")), z));
    at::set_num_threads(threads);
    // Left and right padding, filled with rubbish.
    for (const auto& [left, right] : {std::pair<int64_t, int64_t>{0, 5}, {3, 0}}) {
      at::Tensor x = at::constant_pad_nd(batch.at("x"), {0, 0, left, right}, 1e6);
      const at::Tensor mask =
          at::constant_pad_nd(batch.at("attention_mask").to(at::kLong), {left, right})
              .to(at::kBool);
      EXPECT_TRUE(at::equal(gate.logits(x, mask), z));
    }
    const Batch one = select_examples(batch, at::tensor({17}, at::kLong));
    const int64_t length = one.at("attention_mask").sum().item<int64_t>();
    EXPECT_TRUE(at::equal(gate.logits(one.at("x").slice(1, 0, length), {})[0], z[17]));
  }
}

TEST(LinearGate, ReachesAMeanNumberOfHeadsWithFloorAndFixedHeads) {
  LinearGateSettings settings = random_settings();
  settings.min_heads = 2;
  settings.fixed = at::zeros({3, 4}, at::kChar);
  settings.fixed[0][1] = 1;
  settings.fixed[2][3] = -1;
  const LinearGate gate(settings);
  const Batch batch = testing::random_toy_batch(kLayout, 200, 7, 2, 1);
  const at::Tensor z = gate.logits(batch.at("x"), batch.at("attention_mask"));
  for (double mean : {2.5, 6.0, 9.3, 11.0}) {
    const at::Tensor open = gate.with_mean_heads(z, mean).open_heads(z);
    const at::Tensor count = open.sum({1, 2});
    EXPECT_NEAR(count.mean().item<double>(), mean, 0.02) << mean;
    EXPECT_LE(count.mean().item<double>(), mean + 1e-9);
    EXPECT_GE(count.min().item<double>(), 2);
    EXPECT_TRUE(open.select(1, 0).select(1, 1).all().item<bool>());
    EXPECT_FALSE(open.select(1, 2).select(1, 3).any().item<bool>());
  }
  EXPECT_THROW(gate.with_mean_heads(z, 1.9), std::invalid_argument);
  EXPECT_THROW(gate.with_mean_heads(z, 13), std::invalid_argument);
}

TEST(LinearGate, WithoutWeightsIsStaticPruning) {
  LinearGateSettings settings = random_settings();
  settings.weight.zero_();
  const LinearGate draft(settings);
  const Batch batch = testing::random_toy_batch(kLayout, 20, 7, 2, 1);
  const at::Tensor z = draft.logits(batch.at("x"), batch.at("attention_mask"));
  const at::Tensor open = draft.with_mean_heads(z, 6).open_heads(z);
  const at::Tensor best = std::get<1>(settings.static_logits.flatten().topk(6));
  at::Tensor expected = at::zeros({12}, at::kDouble);
  expected.index_fill_(0, best, 1);
  EXPECT_TRUE(at::equal(open, expected.reshape({1, 3, 4}).expand({20, 3, 4})));
}

TEST(LinearGate, RecordsAddUpAndReplay) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 12, 20, 3, 8);
  LinearGateSettings settings = random_settings();
  settings.dropped_output = at::randn({3, 4, 5}, at::kDouble);
  settings.fixed = at::zeros({3, 4}, at::kChar);
  settings.fixed[1][0] = 1;
  settings.fixed[1][1] = -1;
  settings.calibration = "by hand";
  const LinearGate gate(settings);
  const PolicyRun run = run_policy(*model, batch, gate, {.record = true, .weights_sha256 = "abc"});
  const at::Tensor z = gate.logits(batch.at("x"), batch.at("attention_mask"));
  const auto records = run.records;
  ASSERT_EQ(records.size(), 12u);
  std::vector<at::Tensor> gates;
  bool had_rest = false;
  for (size_t b = 0; b < records.size(); ++b) {
    const DecisionRecord& record = records[b];
    EXPECT_EQ(record.weights_sha256, "abc");
    EXPECT_EQ(record.heads_run, run.heads_run[b].item<int64_t>());
    EXPECT_EQ(record.tokens, batch.at("attention_mask")[b].sum().item<int64_t>());
    for (const HeadDecision& head : record.heads) {
      double sum = *head.base + *head.rest;
      for (const LogitPart& part : head.parts) {
        sum += part.value;
        EXPECT_TRUE(batch.at("attention_mask")[b][part.token].item<bool>());
      }
      had_rest = had_rest || *head.rest != 0;
      EXPECT_NEAR(sum, *head.logit, 1e-5 * std::max(1.0, std::abs(*head.logit)));
      EXPECT_EQ(*head.logit, z[b][head.layer][head.head].item<double>());
      EXPECT_DOUBLE_EQ(*head.margin, *head.logit - *head.threshold);
    }
    EXPECT_EQ(record.heads[4].state, "always_on");
    EXPECT_EQ(record.heads[5].state, "pruned");
    gates.push_back(record.gates().to(at::kDouble));
  }
  EXPECT_TRUE(had_rest) << "no sentence was long enough to have a rest";
  GateSet replayed;
  replayed.heads = at::stack(gates);
  replayed.dropped_output = settings.dropped_output;
  EXPECT_TRUE(at::allclose((*model)(batch, replayed), run.output, 1e-10, 1e-12));
}

TEST(LinearGate, AnswersInputsWithoutTokensWithTheStaticDecision) {
  const LinearGate gate(random_settings());
  const at::Tensor z = gate.logits(at::ones({2, 3, 5}), at::zeros({2, 3}, at::kBool));
  EXPECT_TRUE(at::equal(z[1], gate.settings().static_logits));
  EXPECT_TRUE(at::equal(gate.logits(at::ones({2, 0, 5}), {})[0], gate.settings().static_logits));
  EXPECT_EQ(gate.logits(at::ones({0, 3, 5}), {}).size(0), 0);
}

TEST(LinearGate, RoundTripsBitForBit) {
  LinearGateSettings settings = random_settings();
  settings.dropped_output = at::randn({3, 4, 5}, at::kFloat);
  settings.threshold = 0.1 + 0.2;
  settings.min_heads = 3;
  const LinearGate gate(settings);
  const auto again = policy_from_json(gate.to_json());
  EXPECT_EQ(again->to_json(), gate.to_json());
  const Batch batch = testing::random_toy_batch(kLayout, 9, 7, 2, 1);
  GatePolicy::State state;
  EXPECT_TRUE(at::equal(again->decide(input_of(batch), state).heads,
                        gate.decide(input_of(batch), state).heads));
}

TEST(LinearGate, RefusesSettingsAndInputsThatDoNotFit) {
  const auto refuses = [](auto change) {
    LinearGateSettings settings = random_settings();
    change(settings);
    EXPECT_THROW(LinearGate{settings}, std::invalid_argument);
  };
  refuses([](auto& s) { s.weight = s.weight.to(at::kFloat); });
  refuses([](auto& s) { s.weight[0][0][0] = NAN; });
  refuses([](auto& s) { s.reference = s.reference.slice(0, 1); });
  refuses([](auto& s) { s.static_logits = s.static_logits.t(); });
  refuses([](auto& s) { s.fixed = at::full({3, 4}, 2, at::kChar); });
  refuses([](auto& s) { s.threshold = INFINITY; });
  refuses([](auto& s) { s.min_heads = 13; });
  refuses([](auto& s) { s.dropped_output = at::zeros({3, 3, 5}); });
  const LinearGate gate(random_settings());
  EXPECT_THROW(gate.logits(at::zeros({2, 3, 4}), {}), std::invalid_argument);
  EXPECT_THROW(gate.logits(at::zeros({2, 3, 5}), at::zeros({2, 4}, at::kBool)),
               std::invalid_argument);
  GatePolicy::State state;
  EXPECT_THROW(gate.decide({1, at::zeros({2, 3, 5}), {}}, state), std::invalid_argument);
}

TEST(FitLinearGate, TargetsAreTheGateGradientsAndTheMeanIsReached) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch train = testing::random_toy_batch(kLayout, 80, 6, 3, 1);
  const Batch calibration = testing::random_toy_batch(kLayout, 60, 6, 3, 2);
  const auto fitted = fit_linear_gate(*model, BatchList({train}), BatchList({calibration}),
                                      *cross_entropy(), {.mean_heads = 6, .ridge = 1e12});
  // Central differences of each example's loss give the static logits; an infinite ridge no W.
  at::Tensor importance = at::zeros({80, 3, 4}, at::kDouble);
  constexpr double kStep = 1e-5;
  for (int64_t l = 0; l < 3; ++l) {
    for (int64_t h = 0; h < 4; ++h) {
      at::Tensor loss[2];
      for (int side : {0, 1}) {
        GateSet gates;
        gates.heads = at::ones({80, 3, 4}, at::kDouble);
        gates.heads.select(1, l).select(1, h).add_(side == 0 ? -kStep : kStep);
        loss[side] = cross_entropy()->loss((*model)(train, gates), train, {});
      }
      importance.select(1, l).select(1, h).copy_((loss[1] - loss[0]).abs() / (2 * kStep));
    }
  }
  const double epsilon = 0.01 * importance.mean().item<double>();
  at::Tensor logits = (importance.mean(0) + epsilon).log();
  logits = logits - logits.mean();
  EXPECT_TRUE(at::allclose(fitted.gate->settings().static_logits, logits, 1e-6, 1e-6));
  EXPECT_LT(fitted.gate->settings().weight.abs().max().item<double>(), 1e-6);
  EXPECT_LE(fitted.report.mean_heads, 6 + 1e-9);
  const PolicyRun run = run_policy(*model, calibration, *fitted.gate);
  EXPECT_DOUBLE_EQ(run.heads_run.to(at::kDouble).mean().item<double>(), fitted.report.mean_heads);
}

TEST(FitLinearGate, MatchesTheNormalEquations) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch train = testing::random_toy_batch(kLayout, 150, 6, 3, 1);
  constexpr double kRidge = 0.3;
  const auto fitted =
      fit_linear_gate(*model, BatchList({train}), BatchList({train}), *cross_entropy(),
                      {.mean_heads = 6, .ridge = kRidge, .huber = 0, .settled_share = 0});
  const at::Tensor valid = train.at("attention_mask").to(at::kDouble).unsqueeze(2);
  at::Tensor x = (train.at("x") * valid).sum(1) / valid.sum(1);
  x = x - x.mean(0);
  GateSet gates;
  gates.heads = at::ones({150, 3, 4}, at::kDouble).set_requires_grad(true);
  cross_entropy()->loss((*model)(train, gates), train, {}).sum().backward();
  const at::Tensor importance = gates.heads.grad().abs().reshape({150, 12});
  at::Tensor y = (importance + 0.01 * importance.mean()).log();
  y = y - y.mean(1, true);
  y = y - y.mean(0);
  const at::Tensor gram = x.t().matmul(x) / 150;
  const at::Tensor penalty = kRidge * gram.diagonal().mean() * at::eye(5, at::kDouble);
  const at::Tensor expected = at::linalg_solve(gram + penalty, x.t().matmul(y) / 150).t();
  EXPECT_TRUE(
      at::allclose(fitted.gate->settings().weight, expected.reshape({3, 4, 5}), 1e-7, 1e-9));
}

TEST(FitLinearGate, FindsNothingWhereInputsSayNothing) {
  // Labels and inputs of the importance are independent of the mean feature: GCV must not invent.
  const auto model = testing::random_toy_model({1, 3, 2, 5, 0}, 2, 7);
  const HeadLayout layout{1, 3, 2, 5, 0};
  const Batch train = testing::random_toy_batch(layout, 400, 3, 2, 1);
  const auto fitted = fit_linear_gate(*model, BatchList({train}), BatchList({train}),
                                      *cross_entropy(), {.mean_heads = 2});
  EXPECT_GE(fitted.report.explained, 0);
  EXPECT_LT(fitted.report.explained, 0.9);
  EXPECT_LE(fitted.report.contested, 3);
}

TEST(FitLinearGate, RefusesObjectivesWithoutAGradientAtTheDenseModel) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const BatchList data({testing::random_toy_batch(kLayout, 8, 6, 3, 1)});
  for (const auto& objective : {kl_to_dense(), cosine_to_dense()}) {
    EXPECT_THROW(fit_linear_gate(*model, data, data, *objective, {.mean_heads = 6}),
                 std::invalid_argument);
  }
  EXPECT_THROW(fit_linear_gate(*model, data, data, *cross_entropy(), {.mean_heads = 13}),
               std::invalid_argument);
  EXPECT_THROW(fit_linear_gate(*model, BatchList({}), data, *cross_entropy(), {.mean_heads = 6}),
               std::invalid_argument);
}

TEST(FitLinearGate, CanBeInterrupted) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 8, 6, 3, 1);
  const BatchList data({batch, batch});
  LinearGateFit options{.mean_heads = 6};
  options.progress = [](int64_t done, int64_t total) {
    EXPECT_EQ(total, 4);
    if (done == 2) throw std::runtime_error("stop");
  };
  EXPECT_THROW(fit_linear_gate(*model, data, data, *cross_entropy(), options), std::runtime_error);
}

}  // namespace
}  // namespace headkit
