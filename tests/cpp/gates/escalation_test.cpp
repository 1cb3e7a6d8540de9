#include "headkit/gates/escalation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "headkit/core/flops.h"
#include "headkit/explain/decision_record.h"
#include "headkit/gates/linear_probe.h"
#include "headkit/gates/run_policy.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 4, 2, 5, 6};

HeadMask low_mask() {
  return HeadMask(at::tensor({1, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0}, at::kLong).reshape({3, 4}));
}
HeadMask high_mask() {
  return HeadMask(at::tensor({1, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1}, at::kLong).reshape({3, 4}));
}

class EscalationTest : public ::testing::Test {
 protected:
  at::Tensor output(const HeadMask& mask, const Batch& batch) {
    GateSet gates = GateSet::from_mask(mask);
    gates.heads = gates.heads.to(at::kDouble);
    gates.dropped_output = dropped_;
    return (*model_)(batch, gates);
  }
  Escalation policy(double threshold) const {
    return Escalation(
        {.ladder = ladder_of_masks({low_mask(), high_mask()}, dropped_), .threshold = threshold});
  }

  std::shared_ptr<testing::ToyModel> model_ = testing::random_toy_model(kLayout, 3, 7);
  Batch batch_ = testing::random_toy_batch(kLayout, 40, 6, 3, 8);
  at::Tensor dropped_ = at::randn({3, 4, 5}, at::kDouble) * 0.1;
};

TEST_F(EscalationTest, IsTheCompositionOfLowAndHighOutputs) {
  const at::Tensor low = output(low_mask(), batch_), high = output(high_mask(), batch_);
  const at::Tensor probabilities = low.to(at::kDouble);
  const auto sorted = std::get<0>(probabilities.sort(1, true));
  const at::Tensor confidence = ((sorted.select(1, 0) - sorted.select(1, 1)) / 2).tanh();
  for (double threshold : {0.0, 0.2, 0.5, 0.9, 1.0}) {
    const at::Tensor again = threshold >= 1 ? at::ones({40}, at::kBool) : confidence < threshold;
    const PolicyRun run = run_policy(*model_, batch_, policy(threshold));
    const at::Tensor expected = at::where(again.unsqueeze(1), high, low);
    EXPECT_TRUE(at::allclose(run.output, expected, 1e-10, 1e-12)) << threshold;
    // Layer 0 is the same in both sets, so a re-run adds layers 1 and 2 only.
    EXPECT_TRUE(at::equal(run.heads_run, again.to(at::kLong) * 6 + 6)) << threshold;
    EXPECT_TRUE(at::equal(run.layers_run, again.to(at::kLong) * 2 + 3)) << threshold;
    EXPECT_TRUE(at::allclose((*model_)(batch_, run.gates), run.output, 1e-10, 1e-12));
  }
}

TEST_F(EscalationTest, DecidesForASampleAlone) {
  const Escalation escalation = policy(0.5);
  const PolicyRun all = run_policy(*model_, batch_, escalation);
  const at::Tensor order = at::randperm(40, at::kLong);
  const PolicyRun shuffled = run_policy(*model_, select_examples(batch_, order), escalation);
  EXPECT_TRUE(at::equal(shuffled.heads_run, all.heads_run.index_select(0, order)));
  for (int64_t b : {0, 13, 39}) {
    const PolicyRun one =
        run_policy(*model_, select_examples(batch_, at::tensor({b}, at::kLong)), escalation);
    EXPECT_EQ(one.heads_run[0].item<int64_t>(), all.heads_run[b].item<int64_t>());
    EXPECT_TRUE(at::allclose(one.output[0], all.output[b], 1e-10, 1e-12));
  }
}

TEST_F(EscalationTest, ReachesABudget) {
  const LadderTrace trace = trace_escalation(*model_, BatchList({batch_}), policy(0.5).settings());
  EXPECT_TRUE(at::equal(trace.heads, at::tensor({6.0, 12.0}, at::kDouble)));
  for (double mean : {6.0, 7.5, 9.0, 12.0}) {
    const double lambda = ladder_lambda(trace, {.mean_heads = mean});
    const PolicyRun run = run_policy(*model_, batch_, policy(lambda));
    EXPECT_DOUBLE_EQ(run.heads_run.to(at::kDouble).mean().item<double>(), mean);
  }
  EXPECT_THROW(ladder_lambda(trace, {.mean_heads = 5.9}), std::invalid_argument);
  EXPECT_THROW(ladder_lambda(trace, {.mean_heads = 12.1}), std::invalid_argument);
  EXPECT_THROW(ladder_lambda(trace, {}), std::invalid_argument);
  EXPECT_THROW(ladder_lambda(trace, {.mean_heads = 8, .flops_share = 0.5}), std::invalid_argument);

  // By brute force: no threshold at a confidence keeps the budget and runs more.
  const at::Tensor tokens = batch_.at("attention_mask").sum(1);
  const auto share = [&](double threshold) {
    const PolicyRun run = run_policy(*model_, batch_, policy(threshold));
    double dense = 0;
    for (int64_t b = 0; b < 40; ++b) {
      dense += encoder_flops(kLayout, 12, tokens[b].item<int64_t>());
    }
    return run_flops(kLayout, run, tokens).sum().item<double>() / dense;
  };
  const double budget = 1.1;
  const double found = share(ladder_lambda(trace, {.flops_share = budget}));
  double best = share(0);
  for (int64_t b = 0; b < 40; ++b) {
    const double each = share(std::nextafter(trace.confidence[b][0].item<double>(), 1.0));
    if (each <= budget) best = std::max(best, each);
  }
  EXPECT_DOUBLE_EQ(found, best);
  EXPECT_GT(best, share(0));
}

TEST_F(EscalationTest, LambdaAtRiskHoldsOnItsOwnTrace) {
  const Batch many = testing::random_toy_batch(kLayout, 400, 6, 3, 9);
  const LadderTrace trace = trace_escalation(*model_, BatchList({many}), policy(0.5).settings());
  const at::Tensor low = output(low_mask(), many), high = output(high_mask(), many);
  EXPECT_TRUE(at::equal(trace.changed.select(1, 0).to(at::kBool), low.argmax(1) != high.argmax(1)));
  EXPECT_EQ(trace.changed.select(1, 1).sum().item<double>(), 0);
  const at::Tensor p = high.softmax(1);
  EXPECT_TRUE(at::allclose(trace.kl.select(1, 0),
                           (p * (high.log_softmax(1) - low.log_softmax(1))).sum(1), 1e-8, 1e-12));
  EXPECT_TRUE(at::allclose(trace.loss.select(1, 0),
                           -low.log_softmax(1).gather(1, many.at("labels").unsqueeze(1)).squeeze(1),
                           1e-10, 1e-12));
  ASSERT_GT(trace.changed.mean().item<double>(), 0.02)
      << "the problem is too easy to test anything";
  for (const char* const loss : {"label", "kl", "task"}) {
    const ConformalResult result =
        ladder_lambda_at_risk(trace, {.risk = 0.05, .loss = loss, .bound = 0.8});
    EXPECT_LE(result.corrected_risk, 0.05);
    const PolicyRun run = run_policy(*model_, many, policy(result.lambda));
    const at::Tensor labels = many.at("labels").unsqueeze(1);
    at::Tensor losses = (run.output.argmax(1) != high.argmax(1)).to(at::kDouble);
    if (loss == std::string("kl")) {
      losses = (p * (high.log_softmax(1) - run.output.log_softmax(1))).sum(1);
    } else if (loss == std::string("task")) {
      losses = (high.log_softmax(1) - run.output.log_softmax(1)).gather(1, labels).squeeze(1);
    }
    // Losses are not monotone in lambda; what was bounded is their envelope.
    EXPECT_LE(losses.clamp(0, 0.8).mean().item<double>(), result.empirical_risk + 1e-12) << loss;
  }
  EXPECT_THROW(ladder_lambda_at_risk(trace, {.loss = "accuracy"}), std::invalid_argument);
  const Batch few = select_examples(many, at::arange(18));
  EXPECT_THROW(
      ladder_lambda_at_risk(trace_escalation(*model_, BatchList({few}), policy(0.5).settings()),
                            {.risk = 0.05}),
      std::invalid_argument);
}

TEST_F(EscalationTest, RefusesSetsThatAreNotNestedAndUseAsAGate) {
  EXPECT_THROW(ladder_of_masks({high_mask(), low_mask()}), std::invalid_argument);
  EXPECT_THROW(Escalation({}), std::invalid_argument);
  EXPECT_THROW(Escalation({.ladder = ladder_of_masks({low_mask(), high_mask()}),
                           .signal = "probe_confidence"}),
               std::invalid_argument);
  EXPECT_THROW(policy(1.5), std::invalid_argument);
  EXPECT_THROW(policy(NAN), std::invalid_argument);
  GatePolicy::State state;
  try {
    policy(0.5).decide({0, batch_.at("x"), {}}, state);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("hk.run"), std::string::npos) << error.what();
  }
}

TEST(RunFlopsTest, CountSharedKvHeadsOnceForEachRun) {
  const HeadLayout layout{2, 4, 2, 5, 6, 2};
  const auto model = testing::random_toy_model(layout, 3, 1);
  const Batch batch = testing::random_toy_batch(layout, 5, 4, 3, 2);
  const HeadMask low(at::tensor({1, 0, 0, 0, 1, 1, 0, 0}).view({2, 4}));
  const HeadMask high(at::tensor({1, 0, 0, 0, 1, 1, 1, 0}).view({2, 4}));
  const at::Tensor tokens = batch.at("attention_mask").sum(1);
  for (const double threshold : {0.0, 1.0}) {  // nobody and everybody escalates
    const Escalation escalation({.ladder = ladder_of_masks({low, high}), .threshold = threshold});
    const PolicyRun run = run_policy(*model, batch, escalation, {.record = true});
    const int64_t kv_heads = threshold == 0.0 ? 2 : 4;  // the last layer runs again with 2
    EXPECT_TRUE(at::equal(run.kv_heads_run, at::full({5}, kv_heads, at::kLong)));
    const auto records = run.records;
    for (int64_t b = 0; b < 5; ++b) {
      const int64_t length = tokens[b].item<int64_t>();
      const double heads = run.heads_run[b].item<double>();
      const double expected =
          4.0 * length * 2 * (heads * (5 + length) + static_cast<double>(kv_heads) * 5) +
          run.layers_run[b].item<double>() * feed_forward_flops(layout, length);
      EXPECT_DOUBLE_EQ(run_flops(layout, run, tokens)[b].item<double>(), expected);
      EXPECT_DOUBLE_EQ(*records[b].flops_run, expected);
    }
  }
}

TEST_F(EscalationTest, RecordsReplayToTheOutput) {
  EscalationSettings settings = policy(0.5).settings();
  settings.risk = 0.05;
  const Escalation escalation(settings);
  const PolicyRun run =
      run_policy(*model_, batch_, escalation, {.record = true, .first_input = 100});
  const auto records = run.records;
  ASSERT_EQ(records.size(), 40u);
  std::vector<at::Tensor> gates;
  int64_t escalated = 0;
  for (size_t b = 0; b < records.size(); ++b) {
    const DecisionRecord& record = records[b];
    EXPECT_EQ(record.input, 100 + static_cast<int64_t>(b));
    EXPECT_EQ(record.heads_run, run.heads_run[b].item<int64_t>());
    EXPECT_EQ(record.risk_bound, 0.05);
    EXPECT_EQ(record.mode == "escalated", *record.confidence < 0.5);
    const at::Tensor tokens = batch_.at("attention_mask").sum(1);
    EXPECT_DOUBLE_EQ(*record.flops_run, run_flops(kLayout, run, tokens)[b].item<double>());
    escalated += record.mode == "escalated";
    for (const HeadDecision& head : record.heads) {
      const HeadId id{head.layer, head.head};
      const std::string state = low_mask().contains(id)      ? "always_on"
                                : !high_mask().contains(id)  ? "pruned"
                                : record.mode == "escalated" ? "on"
                                                             : "off";
      EXPECT_EQ(head.state, state);
    }
    gates.push_back(record.gates().to(at::kDouble));
  }
  EXPECT_GT(escalated, 0);
  EXPECT_LT(escalated, 40);
  GateSet replayed;
  replayed.heads = at::stack(gates);
  replayed.dropped_output = dropped_;
  EXPECT_TRUE(at::allclose((*model_)(batch_, replayed), run.output, 1e-10, 1e-12));
}

TEST_F(EscalationTest, RoundTripsBitForBit) {
  EscalationSettings settings = policy(0.1 + 0.2).settings();
  settings.risk = 0.05;
  settings.calibration = "note";
  const Escalation escalation(settings);
  const auto again = policy_from_json(escalation.to_json());
  EXPECT_EQ(again->to_json(), escalation.to_json());
  EXPECT_TRUE(at::equal(run_policy(*model_, batch_, *again).output,
                        run_policy(*model_, batch_, escalation).output));
}

TEST_F(EscalationTest, ReadsTheTwoMasksOfVersionOne) {
  const auto old = policy_from_json(R"({"policy": "escalation", "version": 1, "threshold": 0.25,
      "low": {"layers": 3, "heads": 4, "keep": [[0, 1, 2], [0, 3], [2]]},
      "high": {"layers": 3, "heads": 4, "keep": [[0, 1, 2], [0, 1, 3], [0, 2, 3]]},
      "risk": 0.1, "dropped_output": null, "calibration": "note"})");
  const auto& read = dynamic_cast<const Escalation&>(*old).settings();
  EXPECT_EQ(read.ladder.size(), 2);
  EXPECT_EQ(read.ladder.rung(0).heads, low_mask());
  EXPECT_EQ(read.ladder.rung(1).heads, high_mask());
  EXPECT_EQ(read.threshold, 0.25);
  EXPECT_EQ(read.risk, 0.1);
  EXPECT_EQ(read.calibration, "note");
  EXPECT_NE(old->to_json().find("\"version\":2"), std::string::npos);
}

// Three rungs with blocks, each with its own compensation.
class TallLadderTest : public ::testing::Test {
 protected:
  TallLadderTest() {
    at::manual_seed(3);
    const auto blocks = [](std::vector<int64_t> open) {
      return at::tensor(open, at::kLong).reshape({3, 3}).to(at::kBool);
    };
    const HeadMask middle(
        at::tensor({1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1}, at::kLong).reshape({3, 4}));
    const auto random = [](int64_t units) { return at::randn({3, units, 5}, at::kDouble) * 0.3; };
    Rung low{low_mask(), blocks({1, 1, 0, 1, 0, 0, 0, 0, 0}), random(4), random(3)};
    // The middle rung computes in layer 0 what the low one does, the top one nothing of either.
    Rung high{middle, blocks({1, 1, 0, 1, 1, 0, 1, 0, 0}), random(4), random(3)};
    high.dropped_output[0] = low.dropped_output[0];
    high.dropped_blocks[0] = low.dropped_blocks[0];
    ladder_ = Ladder({low, high, {HeadMask::all(3, 4)}});
  }
  at::Tensor output(int64_t rung) {
    return (*model_)(batch_, ladder_.rung(rung).gates(batch_.at("x")));
  }
  at::Tensor tokens() { return batch_.at("attention_mask").sum(1); }

  HeadLayout layout_{3, 4, 2, 5, 70};
  std::shared_ptr<testing::ToyModel> model_ = testing::random_toy_model(layout_, 3, 7);
  Batch batch_ = testing::random_toy_batch(layout_, 40, 6, 3, 8);
  Ladder ladder_;
};

TEST_F(TallLadderTest, ClimbsRungByRung) {
  std::vector<at::Tensor> outputs, confidence;
  for (int64_t r = 0; r < 3; ++r) {
    outputs.push_back(output(r));
    const auto sorted = std::get<0>(outputs.back().sort(1, true));
    confidence.push_back(((sorted.select(1, 0) - sorted.select(1, 1)) / 2).tanh());
  }
  // What ends on a rung has run it and all below it, of the middle one two layers.
  const double all_neurons = 210;
  const std::vector<double> heads{6, 6 + 5, 11 + 12}, neurons{96, 96 + 96, 192 + all_neurons};
  const std::vector<int64_t> layers{3, 5, 8};
  int64_t ended[3] = {0, 0, 0};
  std::vector<double> thresholds{0, 1};
  for (int64_t r = 0; r < 2; ++r) {
    for (const double q : {0.2, 0.5, 0.8}) {
      thresholds.push_back(confidence[r].quantile(q).item<double>());
    }
  }
  for (const double threshold : thresholds) {
    const Escalation escalation({.ladder = ladder_, .threshold = threshold});
    const PolicyRun run = run_policy(*model_, batch_, escalation, {.record = true});
    const auto records = run.records;
    for (int64_t b = 0; b < 40; ++b) {
      int64_t rung = 0;
      while (rung < 2 && (threshold >= 1 || confidence[rung][b].item<double>() < threshold)) ++rung;
      if (threshold > 0 && threshold < 1) ++ended[rung];
      EXPECT_TRUE(at::allclose(run.output[b], outputs[rung][b], 1e-10, 1e-12));
      EXPECT_EQ(run.heads_run[b].item<int64_t>(), heads[rung]);
      EXPECT_EQ(run.neurons_run[b].item<int64_t>(), neurons[rung]);
      EXPECT_EQ(run.layers_run[b].item<int64_t>(), layers[rung]);
      const double length = tokens()[b].item<double>();
      const double flops =
          4 * length * 2 * (heads[rung] * (10 + length)) + 4 * length * 5 * neurons[rung];
      EXPECT_DOUBLE_EQ(run_flops(layout_, run, tokens())[b].item<double>(), flops);
      EXPECT_EQ(records[b].rung, rung);
      EXPECT_EQ(records[b].rungs, 3);
      EXPECT_EQ(records[b].signal, "output_margin");
      EXPECT_EQ(records[b].heads_run, heads[rung]);
      EXPECT_DOUBLE_EQ(*records[b].flops_run, flops);
      EXPECT_DOUBLE_EQ(*records[b].confidence,
                       confidence[std::min<int64_t>(rung, 1)][b].item<double>());
      // Heads and blocks of the record, with the compensation of its rung, give the output again.
      GateSet again = ladder_.rung(rung).gates(batch_.at("x"));
      again.heads = records[b].gates().to(at::kDouble);
      again.blocks = records[b].block_gates().to(at::kDouble);
      const at::Tensor one = at::tensor({b}, at::kLong);
      EXPECT_TRUE(at::allclose((*model_)(select_examples(batch_, one), again)[0], run.output[b],
                               1e-10, 1e-12));
      EXPECT_EQ(DecisionRecord::from_json(records[b].to_json()), records[b]);
    }
  }
  for (const int64_t count : ended) EXPECT_GT(count, 0) << "a rung is not tested";
}

TEST_F(TallLadderTest, SweepAndTraceSayWhatRunsSay) {
  const Escalation escalation({.ladder = ladder_});
  const LadderTrace trace = trace_escalation(*model_, BatchList({batch_}), escalation.settings());
  const std::vector<double> grid{0, 0.2, 0.4, 0.7, 1};
  const std::vector<PolicyRun> sweep = escalation.sweep(*model_, batch_, grid);
  for (size_t j = 0; j < grid.size(); ++j) {
    const PolicyRun run = run_policy(*model_, batch_, *escalation.at(grid[j]));
    EXPECT_TRUE(at::allclose(sweep[j].output, run.output, 1e-10, 1e-12));
    EXPECT_TRUE(at::equal(sweep[j].neurons_run, run.neurons_run));
    EXPECT_TRUE(at::equal(sweep[j].gates.blocks, run.gates.blocks));
    const at::Tensor reached = trace.reached({grid[j]});
    EXPECT_DOUBLE_EQ(trace.mean_heads(reached),
                     run.heads_run.to(at::kDouble).mean().item<double>());
    EXPECT_TRUE(at::allclose(trace.flops.gather(1, reached.unsqueeze(1)).squeeze(1),
                             run_flops(layout_, run, tokens())));
  }
}

TEST_F(TallLadderTest, AProbeOfAStateMayDecide) {
  at::manual_seed(5);
  for (const int64_t layer : {0, 1, 2}) {
    const auto probe =
        std::make_shared<LinearProbe>(LinearProbeSettings{layer,
                                                          at::zeros({5}, at::kDouble),
                                                          at::randn({3, 5}, at::kDouble),
                                                          at::zeros({3}, at::kDouble),
                                                          {}});
    const Escalation escalation({ladder_, 0.4, "probe_confidence", probe});
    const PolicyRun run = run_policy(*model_, batch_, escalation);
    bool stays = false, climbs = false;
    for (int64_t b = 0; b < 40; ++b) {
      int64_t rung = 0;
      for (; rung < 2; ++rung) {
        const ModelState state =
            model_->run(model_->embed(batch_), 0, layer, ladder_.rung(rung).gates(batch_.at("x")));
        const double confidence =
            probe->signals(state.hidden, state.attention_mask).confidence[b].item<double>();
        if (confidence >= 0.4) break;
      }
      (rung > 0 ? climbs : stays) = true;
      EXPECT_TRUE(at::allclose(run.output[b], output(rung)[b], 1e-10, 1e-12)) << layer;
    }
    EXPECT_TRUE(stays && climbs);
    EXPECT_EQ(policy_from_json(escalation.to_json())->to_json(), escalation.to_json());
  }
}

// A planted model: the answer is in two heads, of which the low rung has one. Half of the inputs
// have a weak signal in the head of the low rung, and need the other.
TEST(PlantedEscalation, SendsUpTheShareThatNeedsIt) {
  const HeadLayout layout{1, 2, 1, 3, 0};
  const auto zeros = [](at::IntArrayRef shape) { return at::zeros(shape, at::kDouble); };
  AttentionWeights weights;
  weights.q = zeros({2, 3});
  weights.k = zeros({2, 3});
  weights.v = at::tensor({1.0, 0.0, 0.0, 0.0, 1.0, 0.0}, at::kDouble).reshape({2, 3});
  weights.o = at::tensor({0.0, 0.0, 0.0, 0.0, 1.0, 1.0}, at::kDouble).reshape({3, 2});
  weights.q_bias = weights.k_bias = weights.v_bias = zeros({2});
  weights.o_bias = zeros({3});
  const at::Tensor classifier =
      at::tensor({0.0, 0.0, 4.0, 0.0, 0.0, -4.0}, at::kDouble).reshape({2, 3});
  testing::ToyModel model(layout, {weights}, classifier, zeros({2}));
  const int64_t count = 40;
  at::Tensor x = zeros({count, 1, 3});
  for (int64_t b = 0; b < count; ++b) {
    const double sign = b % 2 == 0 ? 1 : -1;
    const bool hard = b % 4 < 2;
    x[b][0][0] = hard ? -0.05 * sign : 2 * sign;
    x[b][0][1] = hard ? 2 * sign : 0.0;
  }
  const Batch batch{{"x", x}};
  const Escalation escalation(
      {.ladder =
           ladder_of_masks({HeadMask(at::tensor({1, 0}).reshape({1, 2})), HeadMask::all(1, 2)}),
       .threshold = 0.5});
  const PolicyRun run = run_policy(model, batch, escalation);
  EXPECT_EQ((run.heads_run == 3).sum().item<int64_t>(), count / 2);
  EXPECT_TRUE(at::equal(run.output.argmax(1), at::arange(count) % 2));
  const LadderTrace trace = trace_escalation(model, BatchList({batch}), escalation.settings());
  EXPECT_DOUBLE_EQ(trace.changed.select(1, 0).mean().item<double>(), 0.5);
  EXPECT_DOUBLE_EQ(trace.mean_heads(trace.reached({0.5})), 2);
}

TEST(OutputConfidence, IsTheProbabilityGapOfTwoClasses) {
  const at::Tensor logits = at::tensor({1.5, 0.25, -3.0, 2.0}, at::kDouble).reshape({2, 2});
  const at::Tensor p = logits.softmax(1);
  EXPECT_TRUE(at::allclose(output_confidence(logits), (p.select(1, 0) - p.select(1, 1)).abs()));
  EXPECT_TRUE(at::allclose(output_confidence(logits.slice(1, 0, 1)),
                           (logits.select(1, 0).abs() / 2).tanh()));
  EXPECT_THROW(output_confidence(at::zeros({2, 3, 4})), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
