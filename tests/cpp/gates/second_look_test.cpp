#include "headkit/gates/second_look.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "headkit/core/flops.h"
#include "headkit/explain/decision_record.h"
#include "headkit/gates/integer_scores.h"
#include "headkit/gates/layer_gate.h"
#include "headkit/gates/linear_gate.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 4, 2, 5, 6};

std::shared_ptr<LinearGate> linear_gate(int64_t min_heads = 1) {
  at::manual_seed(3);
  LinearGateSettings settings;
  settings.weight = at::randn({3, 4, 5}, at::kDouble);
  settings.reference = at::randn({5}, at::kDouble) * 0.1;
  settings.static_logits = at::randn({3, 4}, at::kDouble);
  settings.fixed = at::zeros({3, 4}, at::kChar);
  settings.fixed[0][1] = 1;
  settings.fixed[2][3] = -1;
  settings.min_heads = min_heads;
  settings.dropped_output = at::randn({3, 4, 5}, at::kDouble);
  return std::make_shared<LinearGate>(settings);
}

std::shared_ptr<LayerGate> layer_gate() {
  at::manual_seed(4);
  LayerGateSettings settings;
  settings.weight = at::randn({3, 4, 5}, at::kDouble);
  settings.reference = at::zeros({3, 5}, at::kDouble);
  settings.static_logits = at::randn({3, 4}, at::kDouble);
  settings.fixed = at::zeros({3, 4}, at::kChar);
  settings.fixed[1] = 1;
  return std::make_shared<LayerGate>(settings);
}

// theta / sqrt(T) of every head of a layer, in tensor algebra; Q K^T by integer_scores alone.
at::Tensor plain_estimates(GatedModel& model, int64_t layer, const at::Tensor& hidden,
                           const at::Tensor& mask) {
  const AttentionWeights w = model.attention(layer);
  at::Tensor found = at::zeros({hidden.size(0), 4}, at::kDouble);
  for (int64_t b = 0; b < hidden.size(0); ++b) {
    const at::Tensor x = hidden[b].index_select(0, mask[b].nonzero().flatten());
    const auto tokens = static_cast<double>(x.size(0));
    for (int64_t h = 0; h < 4; ++h) {
      const auto unit = [&](const at::Tensor& weight) { return weight.slice(0, 2 * h, 2 * h + 2); };
      const at::Tensor q = x.matmul(unit(w.q).t()) + unit(w.q_bias);
      const at::Tensor k = x.matmul(unit(w.k).t()) + unit(w.k_bias);
      const double scores = integer_score_norm(q.contiguous(), k.contiguous(), 1 / std::sqrt(2.0));
      const double value = at::linalg_matrix_norm(unit(w.v), 2).item<double>();
      const double output = w.o.slice(1, 2 * h, 2 * h + 2).norm().item<double>();
      found[b][h] = scores * (x - x.mean(0)).norm().item<double>() * value * output / tokens /
                    std::sqrt(tokens);
    }
  }
  return found;
}

struct Walked {
  at::Tensor gates, output, flops;
};

// The policy written down: the gate's own decision, and the estimate inside the band.
Walked plain_walk(GatedModel& model, const Batch& batch, const SecondLook& look) {
  const SecondLookSettings& s = look.settings();
  const auto* const early = dynamic_cast<const LinearGate*>(s.gate.get());
  const auto* const layered = dynamic_cast<const LayerGate*>(s.gate.get());
  const at::Tensor fixed = early ? early->settings().fixed : layered->settings().fixed;
  ModelState state = model.embed(batch);
  const int64_t samples = state.hidden.size(0);
  const at::Tensor early_logits =
      early ? early->logits(state.hidden, state.attention_mask) : at::Tensor();
  Walked walked{at::ones({samples, 3, 4}, at::kDouble), {}, at::zeros({samples}, at::kDouble)};
  GateSet gates;
  gates.dropped_output = early ? early->settings().dropped_output : at::Tensor();
  for (int64_t l = 0; l < 3; ++l) {
    const at::Tensor z =
        early ? early_logits.select(1, l) : layered->logits(l, state.hidden, state.attention_mask);
    const at::Tensor theta = plain_estimates(model, l, state.hidden, state.attention_mask);
    for (int64_t b = 0; b < samples; ++b) {
      const int64_t tokens = state.attention_mask[b].sum().item<int64_t>();
      for (int64_t h = 0; h < 4; ++h) {
        const int64_t set = fixed[l][h].item<int64_t>();
        const double logit = z[b][h].item<double>();
        bool open = set != 0 ? set > 0 : logit >= 0;
        if (set == 0 && std::abs(logit) < s.band) {
          open = theta[b][h].item<double>() >= s.ratio * s.median[l].item<double>();
          walked.flops[b] +=
              4.0 * static_cast<double>(tokens) * 5 * 2 + integer_score_flops(tokens, 2);
        }
        walked.gates[b][l][h] = open ? 1 : 0;
      }
    }
    gates.heads = walked.gates;
    state = model.run(state, l, l + 1, gates);
  }
  walked.output = model.head(state);
  return walked;
}

TEST(SecondLook, DecidesNearTheThresholdByTheFormula) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 30, 9, 3, 1);
  const BatchList data({batch});
  // No floor, so that the plain walk needs none.
  for (const std::shared_ptr<const AdjustablePolicy>& gate :
       std::initializer_list<std::shared_ptr<const AdjustablePolicy>>{linear_gate(0),
                                                                      layer_gate()}) {
    const auto look = fit_second_look(*model, data, gate, {.band_share = 0.4});
    const PolicyRun run = run_policy(*model, batch, *look, {.record = true});
    const Walked expected = plain_walk(*model, batch, *look);
    EXPECT_TRUE(at::equal(run.gates.heads.to(at::kDouble), expected.gates)) << gate->name();
    EXPECT_TRUE(at::allclose(run.output, expected.output, 1e-9, 1e-10));
    EXPECT_TRUE(at::allclose(run.decision_flops, expected.flops, 1e-12, 0));
    const at::Tensor alone = run_policy(*model, batch, *gate).gates.heads;
    EXPECT_FALSE(at::equal(alone, run.gates.heads)) << "the second look changes something";
    // What it costs is in the FLOPs and in the records, and the records replay.
    const at::Tensor tokens = batch.at("attention_mask").to(at::kLong).sum(1);
    PolicyRun without = run;
    without.decision_flops = at::Tensor();
    EXPECT_TRUE(at::allclose(run_flops(kLayout, run, tokens) - run_flops(kLayout, without, tokens),
                             expected.flops, 1e-9, 1e-6));
    ASSERT_EQ(run.records.size(), 30u);
    int64_t looked = 0;
    for (int64_t b = 0; b < 30; ++b) {
      const DecisionRecord& record = run.records[static_cast<size_t>(b)];
      EXPECT_EQ(record.policy, "second_look");
      EXPECT_EQ(record.input, b);
      EXPECT_TRUE(at::equal(record.gates().to(at::kDouble), expected.gates[b]));
      EXPECT_EQ(record.heads_run, run.heads_run[b].item<int64_t>());
      EXPECT_NEAR(*record.flops_run, run_flops(kLayout, run, tokens)[b].item<double>(), 1e-6);
      for (const HeadDecision& decision : record.heads) looked += decision.reason == "second_look";
      EXPECT_EQ(DecisionRecord::from_json(record.to_json()), record);
    }
    EXPECT_GT(looked, 0);
  }
}

TEST(SecondLook, IsAFunctionOfTheSampleAlone) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 12, 9, 3, 1);
  for (const std::shared_ptr<const AdjustablePolicy>& gate :
       std::initializer_list<std::shared_ptr<const AdjustablePolicy>>{linear_gate(),
                                                                      layer_gate()}) {
    const auto look = fit_second_look(*model, BatchList({batch}), gate, {.band_share = 0.5});
    const at::Tensor whole = run_policy(*model, batch, *look).gates.heads;
    const ModelState state = model->embed(batch);
    const at::Tensor together =
        look->estimates(*model, 0, {0, 3}, state.hidden, state.attention_mask);
    for (int64_t b = 0; b < 12; ++b) {
      const Batch one = select_examples(batch, at::tensor({b}, at::kLong));
      EXPECT_TRUE(at::equal(run_policy(*model, one, *look).gates.heads[0], whole[b]));
      const ModelState own = model->embed(one);
      EXPECT_TRUE(at::equal(look->estimates(*model, 0, {0, 3}, own.hidden, own.attention_mask)[0],
                            together[b]));
    }
    EXPECT_EQ(run_policy(*model, testing::random_toy_batch(kLayout, 0, 9, 3, 1), *look)
                  .gates.heads.size(0),
              0);
  }
}

TEST(SecondLook, KeepsTheFloorAndTheMeanAndWhatIsSettled) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 60, 9, 3, 1);
  const auto gate = linear_gate(5);
  auto look = fit_second_look(*model, BatchList({batch}), gate, {.band_share = 1});
  SecondLookSettings strict = look->settings();
  strict.ratio = 1e9;
  const PolicyRun closed = run_policy(*model, batch, SecondLook(strict));
  EXPECT_TRUE((closed.heads_run == 5).all().item<bool>()) << "the floor and nothing else";
  EXPECT_TRUE((closed.gates.heads.select(1, 0).select(1, 1) == 1).all().item<bool>());
  strict.ratio = 0;
  const PolicyRun open = run_policy(*model, batch, SecondLook(strict));
  EXPECT_TRUE((open.heads_run == 11).all().item<bool>()) << "all but the pruned one";
  // An early gate's logits do not move, so as many heads run as before, up to ties and the states
  // that differ: exactly as many in the layer whose input is the same.
  const auto free = linear_gate(0);
  look = fit_second_look(*model, BatchList({batch}), free, {.band_share = 0.5});
  const double before = run_policy(*model, batch, *free).gates.heads.sum().item<double>();
  const double after = run_policy(*model, batch, *look).gates.heads.sum().item<double>();
  EXPECT_NEAR(after, before, 0.1 * before);
}

TEST(SecondLook, TurnsWithTheLambdaOfItsGateAndIsStored) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 20, 9, 3, 1);
  const auto look = fit_second_look(*model, BatchList({batch}), linear_gate(), {});
  const PolicyRun all = run_policy(*model, batch, *look->at(1));
  EXPECT_TRUE((all.heads_run == 11).all().item<bool>());
  EXPECT_TRUE((all.decision_flops == 0).all().item<bool>()) << "nothing is contested";
  const auto again = policy_from_json(look->to_json());
  EXPECT_EQ(again->to_json(), look->to_json());
  EXPECT_TRUE(
      at::equal(run_policy(*model, batch, *again).output, run_policy(*model, batch, *look).output));
}

TEST(SecondLook, RefusesWhatItCannotSee) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const BatchList data({testing::random_toy_batch(kLayout, 4, 9, 3, 1)});
  const auto look = fit_second_look(*model, data, linear_gate(), {});
  EXPECT_THROW(fit_second_look(*model, data, look, {}), std::invalid_argument);
  EXPECT_THROW(fit_second_look(*model, data, nullptr, {}), std::invalid_argument);
  EXPECT_THROW(fit_second_look(*model, BatchList({}), linear_gate(), {}), std::invalid_argument);
  EXPECT_THROW(fit_second_look(*model, data, linear_gate(), {.band_share = 0}),
               std::invalid_argument);
  EXPECT_THROW(
      fit_second_look(*testing::random_toy_model({2, 4, 2, 5, 6}, 3, 7), data, linear_gate(), {}),
      std::invalid_argument);
  const at::Tensor hidden = at::randn({2, 3, 5}, at::kDouble);
  const auto state = look->start();
  EXPECT_THROW(look->decide({0, hidden, {}}, *state), std::invalid_argument) << "no model";
  GatePolicy::State plain;
  EXPECT_THROW(look->decide({0, hidden, {}, model.get()}, plain), std::invalid_argument);
  EXPECT_THROW(look->decide({1, hidden, {}, model.get()}, *state), std::invalid_argument)
      << "not decided before the first layer";
  SecondLookSettings settings = look->settings();
  settings.median[0] = 0;
  EXPECT_THROW(SecondLook{settings}, std::invalid_argument);
  settings = look->settings();
  settings.band = -1;
  EXPECT_THROW(SecondLook{settings}, std::invalid_argument);
}

}  // namespace
}  // namespace headkit
