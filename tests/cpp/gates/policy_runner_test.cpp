#include "headkit/gates/policy_runner.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <map>
#include <thread>

#include "headkit/explain/decision_record.h"
#include "headkit/gates/calibrated_policy.h"
#include "headkit/gates/escalation.h"
#include "headkit/gates/linear_gate.h"
#include "headkit/gates/pooled_state.h"
#include "support/scratch_folder.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 4, 2, 5, 6};

class PolicyRunnerTest : public ::testing::Test {
 protected:
  Batch batch(int64_t examples, uint64_t seed) const {
    return testing::random_toy_batch(kLayout, examples, 6, 3, seed);
  }
  std::shared_ptr<CalibratedPolicy> calibrated() {
    Calibration made = calibrate(*model_, *policy_, BatchList({batch(60, 1)}),
                                 make_output_loss("flip"), {.risk = 0.2, .length_buckets = 1});
    made.lambda = 0.25;
    return std::make_shared<CalibratedPolicy>(policy_, made);
  }
  std::shared_ptr<testing::ToyModel> model_ = testing::random_toy_model(kLayout, 3, 7);
  std::shared_ptr<Escalation> policy_ = std::make_shared<Escalation>(EscalationSettings{
      .ladder = ladder_of_masks(
          {HeadMask(at::tensor({1, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0}, at::kLong).reshape({3, 4})),
           HeadMask::all(3, 4)})});
};

TEST_F(PolicyRunnerTest, RunsThePolicyAtTheLambdaAskedFor) {
  PolicyRunner runner({.policy = policy_, .lambda = 0.3});
  const Batch examples = batch(10, 2);
  const GovernedRun governed = runner.run(*model_, examples);
  const PolicyRun plain = run_policy(*model_, examples, *policy_->at(0.3));
  EXPECT_TRUE(at::equal(governed.run.output, plain.output));
  EXPECT_EQ(governed.cost, plain.heads_run.to(at::kDouble).mean().item<double>());
  EXPECT_FALSE(governed.audit_loss.defined());
  PolicyRunner floored({.policy = calibrated()});
  EXPECT_EQ(floored.run(*model_, examples).lambda, 0.25);
  EXPECT_THROW(floored.run(*testing::random_toy_model(kLayout, 3, 8), examples),
               std::invalid_argument);
}

TEST_F(PolicyRunnerTest, MeetsABudgetOnARealModelAndNeverGoesBelowTheFloor) {
  const auto policy = calibrated();
  const double low = policy->calibration().mean_heads[4],
               high = policy->calibration().mean_heads.back();
  const double target = low + 0.5 * (high - low);
  const auto controller =
      std::make_shared<BudgetController>(budget_for(policy->calibration(), "heads", target));
  PolicyRunner runner({.policy = policy, .controller = controller});
  double sum = 0;
  for (int64_t i = 0; i < 80; ++i) {
    const GovernedRun governed = runner.run(*model_, batch(16, 100 + i));
    EXPECT_GE(governed.lambda, 0.25);
    if (i >= 50) sum += governed.cost;
  }
  EXPECT_NEAR(sum / 30, target, 0.04 * target);
  const auto free = std::make_shared<BudgetController>(BudgetOptions{.target = target});
  EXPECT_THROW(PolicyRunner({.policy = policy, .controller = free}), std::invalid_argument);
}

TEST_F(PolicyRunnerTest, AuditsTheChosenRequestsAndRecordsThem) {
  const testing::ScratchFolder folder;
  const auto audit = std::make_shared<ShadowAudit>(AuditOptions{.share = 0.4, .risk = 0.5});
  PolicyRunner runner({.policy = policy_,
                       .lambda = 0.0,
                       .audit = audit,
                       .records = std::make_shared<RecordFile>(folder / "records.jsonl")});
  const Batch examples = batch(30, 5);
  std::vector<std::string> ids;
  for (int64_t b = 0; b < 30; ++b) ids.push_back("id-" + std::to_string(b));
  const GovernedRun governed = runner.run(*model_, examples, ids);
  const at::Tensor full = run_policy(*model_, examples, *policy_->at(1)).output;
  std::ifstream file(folder / "records.jsonl");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::vector<DecisionRecord> records = read_decision_records(text);
  ASSERT_EQ(records.size(), 30u);
  int64_t audited = 0;
  for (int64_t b = 0; b < 30; ++b) {
    const auto& record = records[static_cast<size_t>(b)];
    const double loss = governed.audit_loss[b].item<double>();
    const bool chosen = audit->chosen(ids[static_cast<size_t>(b)]);
    EXPECT_EQ(chosen, !std::isnan(loss));
    EXPECT_EQ(record.request_id, ids[static_cast<size_t>(b)]);
    EXPECT_EQ(record.lambda, 0.0);
    EXPECT_EQ(record.audit_loss.has_value(), chosen);
    EXPECT_TRUE(
        at::equal(record.gates().to(at::kDouble), governed.run.gates.heads[b].to(at::kDouble)));
    if (!chosen) continue;
    ++audited;
    const bool flipped =
        governed.run.output[b].argmax().item<int64_t>() != full[b].argmax().item<int64_t>();
    EXPECT_EQ(loss, flipped ? 1.0 : 0.0);
  }
  EXPECT_EQ(audit->state().audited, audited);
  EXPECT_GT(audited, 0);
  EXPECT_THROW(runner.run(*model_, examples, {"one"}), std::invalid_argument);
}

TEST_F(PolicyRunnerTest, TogglesHeadsOfAuditedRequestsOneByOne) {
  at::manual_seed(11);
  LinearGateSettings settings;
  settings.weight = at::randn({3, 4, 5}, at::kDouble);
  settings.reference = at::zeros({5}, at::kDouble);
  settings.static_logits = at::randn({3, 4}, at::kDouble);
  settings.dropped_output = at::randn({3, 4, 5}, at::kDouble);
  const auto gate = std::make_shared<LinearGate>(settings);
  PolicyRunner runner({.policy = gate,
                       .lambda = 0.5,
                       .audit = std::make_shared<ShadowAudit>(AuditOptions{.share = 0.4}),
                       .audit_loss = make_output_loss("kl"),
                       .audit_toggles = 2});
  const Batch examples = batch(20, 5);
  const GovernedRun governed = runner.run(*model_, examples);
  const GovernedRun again = PolicyRunner(runner.settings()).run(*model_, examples);
  const at::Tensor open = governed.run.gates.heads;
  const at::Tensor full = run_policy(*model_, examples, *gate->at(1)).output;
  const at::Tensor logits = gate->logits(examples.at("x"), examples.at("attention_mask"));
  const auto kl = [&](const at::Tensor& gates) {
    GateSet set;
    set.heads = gates;
    set.dropped_output = settings.dropped_output;
    const at::Tensor chance = full.softmax(1);
    return (chance * (chance.log() - (*model_)(examples, set).log_softmax(1))).sum(1).clamp(0, 1);
  };
  const at::Tensor before = kl(open);
  std::map<int64_t, std::pair<int64_t, int64_t>> sides;
  for (const AuditToggle& each : governed.toggles) {
    EXPECT_FALSE(std::isnan(governed.audit_loss[each.row].item<double>()));
    const bool ran = open[each.row][each.head.layer][each.head.head].item<double>() != 0;
    EXPECT_EQ(each.ran, ran);
    ++(ran ? sides[each.row].first : sides[each.row].second);
    at::Tensor toggled = open.clone();
    toggled[each.row][each.head.layer][each.head.head] = ran ? 0 : 1;
    EXPECT_NEAR(each.change, (kl(toggled) - before)[each.row].item<double>(), 1e-9);
    EXPECT_EQ(each.logit, logits[each.row][each.head.layer][each.head.head].item<double>());
  }
  int64_t audited = 0;
  for (int64_t b = 0; b < 20; ++b) {
    const int64_t ran = open[b].sum().item<int64_t>();
    if (std::isnan(governed.audit_loss[b].item<double>())) {
      EXPECT_EQ(sides.count(b), 0u);
      continue;
    }
    ++audited;
    EXPECT_EQ(sides[b].first, std::min<int64_t>(2, ran));
    EXPECT_EQ(sides[b].second, std::min<int64_t>(2, 12 - ran));
  }
  EXPECT_GT(audited, 0);
  ASSERT_EQ(again.toggles.size(), governed.toggles.size()) << "chosen by the ids";
  for (size_t i = 0; i < again.toggles.size(); ++i) {
    EXPECT_EQ(again.toggles[i].head, governed.toggles[i].head);
  }
  EXPECT_TRUE(governed.run.records.size() == 20u);
  // Logits in the order of what the heads were worth, and against it.
  std::vector<AuditToggle> ordered;
  for (int64_t i = 0; i < 5; ++i) {
    const auto value = static_cast<double>(i);
    ordered.push_back({0, {0, 0}, i % 2 == 0, i % 2 == 0 ? value : -value, value});
  }
  EXPECT_NEAR(toggle_correlation(ordered), 1, 1e-12);
  for (AuditToggle& each : ordered) each.logit = -*each.logit;
  EXPECT_NEAR(toggle_correlation(ordered), -1, 1e-12);
  for (AuditToggle& each : ordered) each.logit.reset();
  EXPECT_TRUE(std::isnan(toggle_correlation(ordered)));
  EXPECT_THROW(PolicyRunner({.policy = gate, .audit_toggles = -1}), std::invalid_argument);
}

TEST_F(PolicyRunnerTest, StepsUpOnAnAlarmAndReturnsToDenseOnTheSecond) {
  const auto audit = std::make_shared<ShadowAudit>(AuditOptions{.risk = 0.01});
  PolicyRunner runner({.policy = policy_, .lambda = 0.25, .audit = audit});
  const Batch examples = batch(5, 6);
  EXPECT_EQ(runner.run(*model_, examples).lambda, 0.25);
  while (!audit->observe(1)) {
  }
  EXPECT_EQ(runner.run(*model_, examples).lambda, 0.3125);
  while (!audit->observe(1)) {
  }
  const GovernedRun dense = runner.run(*model_, examples);
  EXPECT_EQ(dense.lambda, 1);
  EXPECT_TRUE(at::equal(dense.run.output, run_policy(*model_, examples, *policy_->at(1)).output));
}

TEST_F(PolicyRunnerTest, RunsInputsOutOfDistributionInFullAndTheOthersAsEver) {
  const testing::ScratchFolder folder;
  const Batch seen = batch(400, 7);
  const at::Tensor features = pooled_state("test", seen.at("x"), seen.at("attention_mask"));
  const auto ood = std::make_shared<OodScore>(
      OodScore::fit(features.slice(0, 0, 200), features.slice(0, 200), 0.01));
  PolicyRunner runner({.policy = policy_,
                       .lambda = 0.0,
                       .ood = ood,
                       .records = std::make_shared<RecordFile>(folder / "records.jsonl")});
  Batch examples = batch(6, 8);
  examples["x"][1] = examples["x"][1] * 100 + 50;
  const GovernedRun governed = runner.run(*model_, examples);
  const PolicyRun low = run_policy(*model_, examples, *policy_->at(0)),
                  full = run_policy(*model_, examples, *policy_->at(1));
  EXPECT_TRUE(governed.full[1].item<bool>());
  const auto records = governed.run.records;
  ASSERT_EQ(records.size(), 6u);
  for (int64_t b = 0; b < 6; ++b) {
    const PolicyRun& expected = governed.full[b].item<bool>() ? full : low;
    EXPECT_TRUE(at::allclose(governed.run.output[b], expected.output[b], 1e-9, 1e-9)) << b;
    EXPECT_EQ(governed.run.heads_run[b].item<int64_t>(), expected.heads_run[b].item<int64_t>());
    EXPECT_EQ(records[static_cast<size_t>(b)].input, b);
    EXPECT_EQ(records[static_cast<size_t>(b)].mode == "fallback", governed.full[b].item<bool>());
    EXPECT_EQ(records[static_cast<size_t>(b)].ood_score, governed.ood_score[b].item<double>());
  }
  // An input is judged by itself.
  const GovernedRun alone =
      runner.run(*model_, select_examples(examples, at::tensor({1}, at::kLong)));
  EXPECT_EQ(alone.ood_score[0].item<double>(), governed.ood_score[1].item<double>());
}

TEST_F(PolicyRunnerTest, ServesManyThreadsAndEmptyBatches) {
  const auto controller = std::make_shared<BudgetController>(BudgetOptions{.target = 8});
  PolicyRunner runner({.policy = policy_, .controller = controller});
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 5; ++i) runner.run(*model_, batch(4, 10 * t + i));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(controller->state().observations, 15);
  const GovernedRun nothing = runner.run(*model_, batch(0, 1));
  EXPECT_EQ(nothing.run.output.size(0), 0);
  EXPECT_EQ(controller->state().observations, 15);
  EXPECT_THROW(PolicyRunner({}), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
