#include "headkit/gates/reactivation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "headkit/explain/decision_record.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 4, 2, 5, 70};
constexpr int64_t kSamples = 40;

HeadMask mask(std::vector<int64_t> keep) {
  return HeadMask(at::tensor(keep, at::kLong).reshape({3, 4}));
}

class ReactivationTest : public ::testing::Test {
 protected:
  ReactivationTest() {
    at::manual_seed(3);
    const auto blocks = [](std::vector<int64_t> open) {
      return at::tensor(open, at::kLong).reshape({3, 3}).to(at::kBool);
    };
    const auto random = [](int64_t units) { return at::randn({3, units, 5}, at::kDouble) * 0.3; };
    ladder_ = Ladder({{mask({1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0}),
                       blocks({1, 1, 0, 1, 0, 0, 0, 0, 0}), random(4), random(3)},
                      {mask({1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1}),
                       blocks({1, 1, 0, 1, 1, 0, 1, 0, 0}), random(4), random(3)},
                      {HeadMask::all(3, 4)}});
    LinearProbeSettings probe{1,
                              at::zeros({5}, at::kDouble),
                              at::randn({3, 5}, at::kDouble),
                              at::zeros({3}, at::kDouble),
                              {}};
    probe.loss_weight = at::randn({5}, at::kDouble);
    probe_ = std::make_shared<LinearProbe>(probe);
  }
  Reactivation policy(double lambda, const char* signal = "probe_confidence") const {
    return Reactivation({ladder_, probe_, signal, lambda, {1, 2.5}});
  }
  // What every sample says where all run the lowest rung up to the decision.
  ModelState middle() {
    return model_->run(model_->embed(batch_), 0, 1, ladder_.rung(0).gates(batch_.at("x")));
  }

  std::shared_ptr<testing::ToyModel> model_ = testing::random_toy_model(kLayout, 3, 7);
  Batch batch_ = testing::random_toy_batch(kLayout, kSamples, 6, 3, 8);
  Ladder ladder_;
  std::shared_ptr<const LinearProbe> probe_;
};

TEST_F(ReactivationTest, GoesOnWithTheRungThatTheStateAsksFor) {
  const ModelState state = middle();
  const ProbeSignals signals = probe_->signals(state.hidden, state.attention_mask);
  const at::Tensor tokens = batch_.at("attention_mask").sum(1);
  std::vector<at::Tensor> outputs;
  for (int64_t r = 0; r < 3; ++r) {
    outputs.push_back(
        model_->head(model_->run(state, 1, 3, ladder_.rung(r).gates(batch_.at("x")))));
  }
  // Layer 0 runs 2 heads and 64 neurons whatever comes.
  const int64_t heads[] = {5, 7, 10}, neurons[] = {96, 160, 204};
  for (const char* const signal : {"probe_confidence", "predicted_loss"}) {
    const at::Tensor confidence = signal == std::string("predicted_loss")
                                      ? (-signals.log_loss.exp()).exp()
                                      : signals.confidence;
    const Reactivation reactivation = policy(0.5, signal);
    EXPECT_EQ(reactivation.decision_layers(), (std::vector<int64_t>{0, 1}));
    const PolicyRun run = run_policy(*model_, batch_, reactivation, {.record = true});
    const auto records = run.records;
    int64_t ended[3] = {0, 0, 0};
    for (int64_t b = 0; b < kSamples; ++b) {
      const double c = confidence[b].item<double>();
      const int64_t rung = c < std::pow(0.5, 2.5) ? 2 : c < 0.5 ? 1 : 0;
      ++ended[rung];
      EXPECT_TRUE(at::allclose(run.output[b], outputs[rung][b], 1e-10, 1e-12)) << b;
      EXPECT_EQ(run.heads_run[b].item<int64_t>(), heads[rung]);
      EXPECT_EQ(run.neurons_run[b].item<int64_t>(), neurons[rung]);
      EXPECT_EQ(run.layers_run[b].item<int64_t>(), 3);
      const DecisionRecord& record = records[b];
      EXPECT_EQ(record.rung, rung);
      EXPECT_EQ(record.decided_at, 1);
      EXPECT_EQ(record.signal, signal);
      EXPECT_DOUBLE_EQ(*record.confidence, c);
      EXPECT_DOUBLE_EQ(*record.flops_run, run_flops(kLayout, run, tokens)[b].item<double>());
      EXPECT_EQ(record.heads[2].state, "pruned");  // layer 0 is not decided
      EXPECT_EQ(record.heads[4].state, "always_on");
      EXPECT_EQ(record.heads[6].state, rung > 0 ? "on" : "off");
      GateSet again = reactivation.path(rung).gates(batch_.at("x"));
      again.heads = record.gates().to(at::kDouble);
      again.blocks = record.block_gates().to(at::kDouble);
      const Batch one = select_examples(batch_, at::tensor({b}, at::kLong));
      EXPECT_TRUE(at::allclose((*model_)(one, again)[0], run.output[b], 1e-10, 1e-12));
    }
    for (const int64_t count : ended) EXPECT_GT(count, 0) << signal << ": a rung is not tested";
  }
}

TEST_F(ReactivationTest, LambdaRunsFromTheLowestRungToTheWholeTop) {
  const PolicyRun least = run_policy(*model_, batch_, policy(0));
  EXPECT_TRUE((least.heads_run == 5).all().item<bool>());
  const PolicyRun most = run_policy(*model_, batch_, policy(1), {.record = true});
  EXPECT_TRUE(at::allclose(most.output, (*model_)(batch_), 1e-10, 1e-12));
  EXPECT_TRUE((most.heads_run == 12).all().item<bool>());
  EXPECT_EQ(most.records[3].mode, "static");
  at::Tensor heads = least.heads_run;
  const std::vector<double> grid{0, 0.1, 0.3, 0.5, 0.8, 0.99, 1};
  const std::vector<PolicyRun> sweep = policy(0.5).sweep(*model_, batch_, grid);
  for (size_t j = 0; j < grid.size(); ++j) {
    const PolicyRun run = run_policy(*model_, batch_, *policy(0.5).at(grid[j]));
    EXPECT_TRUE((run.heads_run >= heads).all().item<bool>());
    heads = run.heads_run;
    EXPECT_TRUE(at::allclose(sweep[j].output, run.output, 1e-10, 1e-12)) << grid[j];
    EXPECT_TRUE(at::equal(sweep[j].heads_run, run.heads_run));
    EXPECT_TRUE(at::equal(sweep[j].kv_heads_run, run.kv_heads_run));
    EXPECT_TRUE(at::equal(sweep[j].neurons_run, run.neurons_run));
    EXPECT_TRUE(at::equal(sweep[j].gates.heads, run.gates.heads));
    EXPECT_TRUE(at::equal(sweep[j].gates.blocks, run.gates.blocks));
  }
}

TEST_F(ReactivationTest, DecidesForASampleAlone) {
  const Reactivation reactivation = policy(0.5);
  const PolicyRun all = run_policy(*model_, batch_, reactivation);
  const at::Tensor order = at::randperm(kSamples, at::kLong);
  const PolicyRun shuffled = run_policy(*model_, select_examples(batch_, order), reactivation);
  EXPECT_TRUE(at::equal(shuffled.gates.heads, all.gates.heads.index_select(0, order)));
  EXPECT_TRUE(at::equal(shuffled.heads_run, all.heads_run.index_select(0, order)));
}

TEST_F(ReactivationTest, AnEmptyBatchIsLegal) {
  const Batch none = select_examples(batch_, at::empty({0}, at::kLong));
  for (const double lambda : {0.5, 1.0}) {
    const PolicyRun run = run_policy(*model_, none, policy(lambda), {.record = true});
    EXPECT_EQ(run.output.size(0), 0);
    EXPECT_EQ(run.heads_run.size(0), 0);
    EXPECT_EQ(policy(0.5).sweep(*model_, none, {lambda}).front().output.size(0), 0);
  }
}

TEST_F(ReactivationTest, GatesOfAWholeBatchNeedOneCompensation) {
  const ModelState state = middle();
  GatePolicy::State notes;
  const GateInput input{1, state.hidden, state.attention_mask};
  try {
    policy(0.5).decide(input, notes);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("in parts"), std::string::npos) << error.what();
  }
  const at::Tensor dropped = at::randn({3, 4, 5}, at::kDouble);
  std::vector<Rung> rungs = ladder_.rungs();
  for (Rung& rung : rungs) rung = {rung.heads, rung.blocks, dropped, {}};
  const Reactivation shared({Ladder(rungs), probe_, "probe_confidence", 0.5});
  const GateSet gates = shared.decide(input, notes);
  const at::Tensor rung = shared.rungs_of(state.hidden, state.attention_mask);
  for (int64_t b = 0; b < kSamples; ++b) {
    EXPECT_TRUE(at::equal(gates.heads[b] != 0, shared.path(rung[b].item<int64_t>()).heads.keep()));
  }
  EXPECT_TRUE(at::equal(gates.dropped_output, dropped));
}

TEST_F(ReactivationTest, RefusesSettingsThatDoNotFit) {
  const auto make = [&](ReactivationSettings settings) { Reactivation{std::move(settings)}; };
  EXPECT_THROW(make({}), std::invalid_argument);
  EXPECT_THROW(make({ladder_, nullptr}), std::invalid_argument);
  EXPECT_THROW(make({ladder_, probe_, "output_margin"}), std::invalid_argument);
  EXPECT_THROW(make({ladder_, probe_, "probe_confidence", 1.1}), std::invalid_argument);
  EXPECT_THROW(make({ladder_, probe_, "probe_confidence", 0.5, {2, 1}}), std::invalid_argument);
  EXPECT_THROW(make({ladder_, probe_, "probe_confidence", 0.5, {1}}), std::invalid_argument);
  LinearProbeSettings early = probe_->settings();
  early.layer = 0;
  EXPECT_THROW(make({ladder_, std::make_shared<LinearProbe>(early)}), std::invalid_argument);
  early.layer = 1;
  early.loss_weight = at::Tensor();
  EXPECT_THROW(make({ladder_, std::make_shared<LinearProbe>(early), "predicted_loss"}),
               std::invalid_argument);
  const auto other = testing::random_toy_model({3, 4, 2, 5, 6}, 3, 7);
  EXPECT_THROW(
      run_policy(*other, testing::random_toy_batch({3, 4, 2, 5, 6}, 2, 3, 3, 1), policy(0.5)),
      std::invalid_argument);
}

TEST_F(ReactivationTest, RoundTripsBitForBit) {
  ReactivationSettings settings = policy(0.1 + 0.2).settings();
  settings.risk = 0.05;
  settings.calibration = "note";
  const Reactivation reactivation(settings);
  const auto again = policy_from_json(reactivation.to_json());
  EXPECT_EQ(again->to_json(), reactivation.to_json());
  EXPECT_TRUE(at::equal(run_policy(*model_, batch_, *again).output,
                        run_policy(*model_, batch_, reactivation).output));
}

// A planted model: a token's second dimension says whether the input is hard; only the second
// head of layer 1 then has the answer. The state before layer 1 shows it.
TEST(PlantedReactivation, SendsUpTheShareThatNeedsIt) {
  const HeadLayout layout{2, 2, 1, 4, 0};
  const auto zeros = [](at::IntArrayRef shape) { return at::zeros(shape, at::kDouble); };
  std::vector<AttentionWeights> layers(2);
  for (AttentionWeights& weights : layers) {
    weights.q = zeros({2, 4});
    weights.k = zeros({2, 4});
    weights.v = zeros({2, 4});
    weights.o = zeros({4, 2});
    weights.q_bias = weights.k_bias = weights.v_bias = zeros({2});
    weights.o_bias = zeros({4});
  }
  layers[1].v[0][0] = 1;  // head 0 reads what easy inputs say, head 1 what hard ones say
  layers[1].v[1][2] = 1;
  layers[1].o[3][0] = 1;
  layers[1].o[3][1] = 1;
  const at::Tensor classifier =
      at::tensor({0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, -2.0}, at::kDouble).reshape({2, 4});
  testing::ToyModel model(layout, layers, classifier, zeros({2}));
  const auto examples = [&](int64_t count) {
    at::Tensor x = zeros({count, 1, 4});
    for (int64_t b = 0; b < count; ++b) {
      const double sign = b % 2 == 0 ? 1 : -1;
      const bool hard = b % 10 < 3;
      x[b][0][1] = hard ? 1 : 0;
      x[b][0][hard ? 2 : 0] = 2 * sign;
    }
    return Batch{{"x", x}};
  };
  const Ladder ladder(
      {{HeadMask(at::tensor({1, 1, 1, 0}).reshape({2, 2}))}, {HeadMask::all(2, 2)}});
  ReactivationFit fit;
  fit.signal = "predicted_loss";
  fit.budget.mean_heads = 3 + 0.3;
  const FittedReactivation fitted =
      fit_reactivation(model, BatchList({examples(200)}), BatchList({examples(100)}), ladder, fit);
  EXPECT_NEAR(fitted.mean_heads, 3.3, 1e-12);
  EXPECT_EQ(fitted.changed, 0);
  const Batch fresh = examples(50);
  const PolicyRun run = run_policy(model, fresh, *fitted.policy);
  EXPECT_TRUE(at::equal(run.heads_run == 4, fresh.at("x").select(2, 1).squeeze(1) == 1));
  EXPECT_TRUE(at::equal(run.output.argmax(1), at::arange(50) % 2));
}

}  // namespace
}  // namespace headkit
