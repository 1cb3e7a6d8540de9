#include "headkit/gates/adjustable_policy.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "headkit/gates/escalation.h"
#include "headkit/gates/linear_gate.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 4, 2, 5, 6};
const std::vector<double> kGrid{0, 0.1, 0.25, 0.5, 0.75, 0.9, 1};

HeadMask random_mask(uint64_t seed, double share) {
  at::manual_seed(seed);
  return HeadMask(at::rand({3, 4}) < share);
}

std::shared_ptr<AdjustablePolicy> make(const std::string& name) {
  if (name == "escalation") {
    const HeadMask high = random_mask(1, 0.9);
    return std::make_shared<Escalation>(
        EscalationSettings{ladder_of_masks({random_mask(2, 0.5).intersect(high), high})});
  }
  at::manual_seed(3);
  LinearGateSettings settings;
  settings.weight = at::randn({3, 4, 5}, at::kDouble);
  settings.reference = at::randn({5}, at::kDouble);
  settings.static_logits = 2 * at::randn({3, 4}, at::kDouble) - 1;
  settings.fixed = at::zeros({3, 4}, at::kChar);
  settings.fixed[0][0] = 1;
  settings.fixed[2][3] = -1;
  return std::make_shared<LinearGate>(settings);
}

class AdjustablePolicyTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<AdjustablePolicy> policy_ = make(GetParam());
  std::shared_ptr<testing::ToyModel> model_ = testing::random_toy_model(kLayout, 3, 7);
  Batch batch_ = testing::random_toy_batch(kLayout, 40, 6, 3, 8);
};

TEST_P(AdjustablePolicyTest, LargerLambdaNeverRunsLess) {
  at::Tensor heads = at::full({40}, -1, at::kLong);
  at::Tensor open = at::zeros({40, 3, 4}, at::kBool);
  for (const double lambda : kGrid) {
    const PolicyRun run = run_policy(*model_, batch_, *policy_->at(lambda));
    EXPECT_TRUE((run.heads_run >= heads).all().item<bool>()) << lambda;
    const at::Tensor now = run.gates.heads != 0;
    EXPECT_TRUE((now.logical_or(open.logical_not())).all().item<bool>()) << lambda;
    heads = run.heads_run;
    open = now;
  }
  EXPECT_GT(heads.sum().item<int64_t>(),
            run_policy(*model_, batch_, *policy_->at(0)).heads_run.sum().item<int64_t>());
}

TEST_P(AdjustablePolicyTest, OneRunsAllThatMayRun) {
  const PolicyRun run = run_policy(*model_, batch_, *policy_->at(1));
  at::Tensor all = at::ones({3, 4}, at::kBool);
  if (const auto* escalation = dynamic_cast<const Escalation*>(policy_.get())) {
    all = escalation->settings().ladder.rungs().back().heads.keep();
  } else {
    all[2][3] = false;
  }
  EXPECT_TRUE(at::equal(run.gates.heads != 0, all.expand({40, 3, 4})));
}

TEST_P(AdjustablePolicyTest, SweepIsTheRunsOneByOne) {
  const std::vector<PolicyRun> sweep = policy_->sweep(*model_, batch_, kGrid);
  ASSERT_EQ(sweep.size(), kGrid.size());
  for (size_t j = 0; j < kGrid.size(); ++j) {
    const PolicyRun run = run_policy(*model_, batch_, *policy_->at(kGrid[j]));
    EXPECT_TRUE(at::allclose(sweep[j].output, run.output, 1e-10, 1e-12)) << kGrid[j];
    EXPECT_TRUE(at::equal(sweep[j].gates.heads, run.gates.heads)) << kGrid[j];
    EXPECT_TRUE(at::equal(sweep[j].heads_run, run.heads_run)) << kGrid[j];
    EXPECT_TRUE(at::equal(sweep[j].kv_heads_run, run.kv_heads_run)) << kGrid[j];
    EXPECT_TRUE(at::equal(sweep[j].layers_run, run.layers_run)) << kGrid[j];
  }
  EXPECT_TRUE(policy_->sweep(*model_, batch_, {}).empty());
}

TEST_P(AdjustablePolicyTest, RefusesLambdasOutsideTheUnitInterval) {
  for (const double lambda : {-0.1, 1.1, static_cast<double>(NAN)}) {
    EXPECT_THROW(policy_->at(lambda), std::invalid_argument);
    EXPECT_THROW(policy_->sweep(*model_, batch_, {0.5, lambda}), std::invalid_argument);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, AdjustablePolicyTest,
                         ::testing::Values("linear_gate", "escalation"),
                         [](const auto& info) { return info.param; });

// The closed form: the logistic distribution function at the threshold is 1 - lambda.
TEST(LinearGateLambda, IsAQuantileOfTheStaticLogits) {
  LinearGateSettings settings;
  settings.weight = at::zeros({1, 3, 2}, at::kDouble);
  settings.reference = at::zeros({2}, at::kDouble);
  settings.static_logits = at::tensor({-1.0, 2.0, 50.0}, at::kDouble).reshape({1, 3});
  settings.fixed = at::tensor({0, 0, 1}, at::kChar).reshape({1, 3});
  const LinearGate gate(settings);
  const double mean = 0.5, deviation = 1.5;
  for (const double lambda : {0.01, 0.3, 0.5, 0.8}) {
    const auto adjusted = std::static_pointer_cast<LinearGate>(gate.at(lambda));
    const double standard = (adjusted->settings().threshold - mean) / deviation;
    EXPECT_NEAR(1 / (1 + std::exp(-standard * M_PI / std::sqrt(3.0))), 1 - lambda, 1e-12);
  }
  const auto nothing = gate.at(0);
  GatePolicy::State state;
  EXPECT_EQ(nothing->decide({0, at::zeros({1, 4, 2}), {}}, state).heads.sum().item<double>(), 1);
}

}  // namespace
}  // namespace headkit
