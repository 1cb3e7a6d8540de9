#include "headkit/gates/escalation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "headkit/core/flops.h"
#include "headkit/explain/decision_record.h"
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
    return Escalation({low_mask(), high_mask(), threshold, dropped_, std::nullopt, ""});
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

TEST_F(EscalationTest, ReachesAMeanNumberOfHeads) {
  const EscalationTrace trace =
      trace_escalation(*model_, BatchList({batch_}), policy(0.5).settings());
  EXPECT_EQ(trace.low_heads, 6);
  EXPECT_EQ(trace.extra_heads, 6);
  for (double mean : {6.0, 7.5, 9.0, 12.0}) {
    const PolicyRun run = run_policy(*model_, batch_, policy(escalation_threshold(trace, mean)));
    EXPECT_DOUBLE_EQ(run.heads_run.to(at::kDouble).mean().item<double>(), mean);
  }
  EXPECT_THROW(escalation_threshold(trace, 5.9), std::invalid_argument);
  EXPECT_THROW(escalation_threshold(trace, 12.1), std::invalid_argument);
}

TEST_F(EscalationTest, ThresholdAtRiskHoldsOnItsOwnTrace) {
  const Batch many = testing::random_toy_batch(kLayout, 400, 6, 3, 9);
  const EscalationTrace trace =
      trace_escalation(*model_, BatchList({many}), policy(0.5).settings());
  const at::Tensor low = output(low_mask(), many), high = output(high_mask(), many);
  EXPECT_TRUE(at::equal(trace.changed.to(at::kBool), low.argmax(1) != high.argmax(1)));
  ASSERT_GT(trace.changed.mean().item<double>(), 0.05)
      << "the problem is too easy to test anything";
  const ConformalResult result = escalation_threshold_at_risk(trace, 0.05);
  EXPECT_GT(result.lambda, 0);
  EXPECT_LE(result.corrected_risk, 0.05);
  const PolicyRun run = run_policy(*model_, many, policy(result.lambda));
  const double flips =
      (run.output.argmax(1) != high.argmax(1)).to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(flips, result.empirical_risk, 1e-12);
  EscalationTrace few = trace;
  few.confidence = few.confidence.slice(0, 0, 18);
  few.changed = few.changed.slice(0, 0, 18);
  EXPECT_THROW(escalation_threshold_at_risk(few, 0.05), std::invalid_argument);
}

TEST_F(EscalationTest, RefusesSetsThatAreNotNestedAndUseAsAGate) {
  EXPECT_THROW(Escalation({high_mask(), low_mask(), 0.5, {}, std::nullopt, ""}),
               std::invalid_argument);
  EXPECT_THROW(Escalation({low_mask(), HeadMask::all(2, 4), 0.5, {}, std::nullopt, ""}),
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
    const Escalation escalation({low, high, threshold, {}, std::nullopt, ""});
    const PolicyRun run = run_policy(*model, batch, escalation, {.record = true});
    const int64_t kv_heads = threshold == 0.0 ? 2 : 4;  // the last layer runs again with 2
    EXPECT_TRUE(at::equal(run.kv_heads_run, at::full({5}, kv_heads, at::kLong)));
    const auto records = read_decision_records(run.records);
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
  Escalation escalation({low_mask(), high_mask(), 0.5, dropped_, 0.05, "test"});
  const PolicyRun run =
      run_policy(*model_, batch_, escalation, {.record = true, .first_input = 100});
  const auto records = read_decision_records(run.records);
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
  const Escalation escalation({low_mask(), high_mask(), 0.1 + 0.2, dropped_, 0.05, "note"});
  const auto again = policy_from_json(escalation.to_json());
  EXPECT_EQ(again->to_json(), escalation.to_json());
  EXPECT_TRUE(at::equal(run_policy(*model_, batch_, *again).output,
                        run_policy(*model_, batch_, escalation).output));
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
