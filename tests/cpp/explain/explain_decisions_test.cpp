#include "headkit/explain/explain_decisions.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "headkit/explain/head_explanation.h"
#include "headkit/gates/layer_gate.h"
#include "headkit/gates/linear_gate.h"
#include "headkit/gates/mask_policy.h"
#include "headkit/gates/run_policy.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 4, 2, 5, 0};

std::shared_ptr<LinearGate> early_gate() {
  at::manual_seed(11);
  LinearGateSettings settings;
  settings.weight = at::randn({3, 4, 6}, at::kDouble);
  settings.reference = at::randn({6}, at::kDouble);
  settings.static_logits = 0.3 * at::randn({3, 4}, at::kDouble);
  settings.features = {"log_length"};
  settings.fixed = at::zeros({3, 4}, at::kChar);
  settings.fixed[1][1] = 1;
  settings.fixed[2][2] = -1;
  return std::make_shared<LinearGate>(settings);
}

std::shared_ptr<LayerGate> gate_by_layer() {
  at::manual_seed(12);
  LayerGateSettings settings;
  settings.weight = at::randn({3, 4, 5}, at::kDouble);
  settings.reference = at::zeros({3, 5}, at::kDouble);
  settings.static_logits = 0.3 * at::randn({3, 4}, at::kDouble);
  settings.min_heads = 1;
  settings.fixed = at::zeros({3, 4}, at::kChar);
  settings.fixed[1].fill_(1);
  return std::make_shared<LayerGate>(settings);
}

double sum_of(const FeatureParts& given) {
  double sum = given.rest;
  for (const FeaturePart& part : given.parts) sum += part.value;
  return sum;
}

class ExplainDecisions : public ::testing::TestWithParam<bool> {
 protected:
  ExplainDecisions() {
    if (GetParam()) {
      policy_ = gate_by_layer();
    } else {
      policy_ = early_gate();
    }
  }
  std::shared_ptr<GatePolicy> policy_;
  std::shared_ptr<testing::ToyModel> model_ = testing::random_toy_model(kLayout, 3, 7);
  Batch batch_ = testing::random_toy_batch(kLayout, 5, 9, 3, 2);
};

TEST_P(ExplainDecisions, AddsUpFlipsAndComesBack) {
  const at::Tensor before = batch_.at("x").clone();
  const std::string fingerprint = model_->fingerprint();
  const std::vector<DecisionRecord> plain =
      run_policy(*model_, batch_, *policy_, {.record = true}).records;
  const auto records = explain_decisions(*model_, batch_, *policy_, {.removals = -1});
  ASSERT_EQ(records.size(), 5u);
  int64_t flips = 0, explained = 0;
  for (size_t b = 0; b < records.size(); ++b) {
    const DecisionRecord& record = records[b];
    EXPECT_TRUE(at::equal(record.gates(), plain[b].gates()));
    EXPECT_EQ(record.weights_sha256, fingerprint);
    EXPECT_EQ(record.reference, GetParam() ? "origin" : "calibration_mean");
    for (const HeadDecision& head : record.heads) {
      if (!head.explained) continue;
      ++explained;
      const HeadExplanation& why = *head.explained;
      const double logit = *head.logit, tolerance = 1e-5 * std::max(1.0, std::abs(logit));
      EXPECT_NEAR(*head.base + sum_of(*why.features), logit, tolerance);
      EXPECT_NEAR(*head.base + sum_of(*why.joint), logit, tolerance);
      EXPECT_LE(std::abs(*head.residual), tolerance);
      EXPECT_FALSE(why.margin_std);
      const bool decided = head.state == "on" || head.state == "off";
      EXPECT_EQ(why.flip.has_value(), decided);
      EXPECT_EQ(why.rank.has_value(), decided);
      if (!why.flip) continue;
      EXPECT_TRUE(why.flip->verified);
      if (why.flip->removed.empty()) continue;
      ++flips;
      if (static_cast<int64_t>(why.flip->removed.size()) < record.tokens) {
        ASSERT_TRUE(why.removal);
        EXPECT_EQ(why.removal->flips, why.removal->state != head.state);
      }
    }
    const DecisionRecord again = DecisionRecord::from_json(record.to_json());
    EXPECT_EQ(again, record);
    EXPECT_EQ(again.to_json(), record.to_json());
  }
  EXPECT_GT(explained, 20);
  EXPECT_GT(flips, 10);
  EXPECT_TRUE(at::equal(batch_.at("x"), before));
  EXPECT_EQ(model_->fingerprint(), fingerprint);
}

TEST_P(ExplainDecisions, RemovedTokensAreGoneFromTheInput) {
  const auto records = explain_decisions(*model_, batch_, *policy_, {.removals = 3});
  int64_t tried = 0;
  for (int64_t b = 0; b < 5; ++b) {
    const DecisionRecord& record = records[static_cast<size_t>(b)];
    int64_t own = 0;
    for (const HeadDecision& head : record.heads) {
      if (!head.explained || !head.explained->removal) continue;
      ++own;
      std::vector<int64_t> kept;
      const std::vector<int64_t>& removed = head.explained->flip->removed;
      for (int64_t t = 0; t < record.tokens; ++t) {
        if (std::find(removed.begin(), removed.end(), t) == removed.end()) kept.push_back(t);
      }
      const at::Tensor places = at::tensor(kept, at::kLong);
      const Batch alone{{"x", batch_.at("x")[b].index_select(0, places).unsqueeze(0)},
                        {"attention_mask", at::ones({1, places.size(0)}, at::kBool)}};
      const at::Tensor gates = run_policy(*model_, alone, *policy_).gates.heads;
      const bool open = gates[0][head.layer][head.head].item<double>() != 0;
      EXPECT_EQ(head.explained->removal->state, open ? "on" : "off");
      EXPECT_EQ(head.explained->removal->flips, open != (head.state == "on"));
    }
    EXPECT_LE(own, 3);
    tried += own;
  }
  EXPECT_GT(tried, 5);
}

TEST_P(ExplainDecisions, StandardisesMarginsByTheSpreadOfTheLogits) {
  const Batch other = testing::random_toy_batch(kLayout, 12, 9, 3, 4);
  const at::Tensor spread = logit_spread(*model_, BatchList({batch_, other}), *policy_);
  std::vector<DecisionRecord> all;
  for (const Batch& each : {batch_, other}) {
    for (DecisionRecord& record : run_policy(*model_, each, *policy_, {.record = true}).records) {
      all.push_back(std::move(record));
    }
  }
  const auto records = explain_decisions(*model_, batch_, *policy_, {.logit_spread = spread});
  for (const HeadDecision& head : records[0].heads) {
    if (!head.explained) {
      EXPECT_EQ(spread[head.layer][head.head].item<double>(), 0);
      continue;
    }
    std::vector<double> logits;
    for (const DecisionRecord& record : all) {
      logits.push_back(*record.heads[static_cast<size_t>(head.layer * 4 + head.head)].logit);
    }
    const double expected = at::tensor(logits, at::kDouble).std().item<double>();
    EXPECT_NEAR(spread[head.layer][head.head].item<double>(), expected, 1e-9);
    if (head.explained->rank) {
      EXPECT_NEAR(*head.explained->margin_std, *head.margin / expected, 1e-9);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Gates, ExplainDecisions, ::testing::Values(false, true),
                         [](const auto& info) { return info.param ? "Layer" : "Linear"; });

TEST(ExplainDecisionsOf, AMaskHasNoReasonsButAnIdentity) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch batch = testing::random_toy_batch(kLayout, 2, 6, 3, 2);
  const MaskPolicy policy(HeadMask(at::tensor({1, 0, 1, 1}).expand({3, 4})));
  const auto records = explain_decisions(*model, batch, policy);
  EXPECT_FALSE(records[0].heads[0].explained);
  EXPECT_EQ(records[0].details->policy_sha256.size(), 64u);
  EXPECT_NE(records[0].details->input_sha256, records[1].details->input_sha256);
  EXPECT_THROW(logit_spread(*model, BatchList({batch}), policy), std::invalid_argument);
  EXPECT_THROW(explain_decisions(*model, batch, policy, {.units = {{}}}), std::invalid_argument);
  EXPECT_THROW(
      explain_decisions(*model, batch, policy, {.logit_spread = at::ones({4, 3}, at::kDouble)}),
      std::invalid_argument);
}

TEST(ExampleFingerprint, ForgetsPaddingLabelsAndNeighbours) {
  Batch batch = testing::random_toy_batch(kLayout, 4, 6, 3, 2);
  const at::Tensor mask = batch.at("attention_mask");
  const std::string own = example_fingerprint(batch, 2, mask[2]);
  Batch alone = select_examples(batch, at::tensor({2}, at::kLong));
  EXPECT_EQ(example_fingerprint(alone, 0, mask[2]), own);
  alone.erase("labels");
  alone.erase("attention_mask");
  alone["x"] = at::constant_pad_nd(alone.at("x"), {0, 0, 3, 2}, 5.0);
  EXPECT_EQ(example_fingerprint(alone, 0, at::constant_pad_nd(mask[2], {3, 2})), own);
  alone["x"][0][3 + mask[2].nonzero()[0].item<int64_t>()][0] += 1e-9;
  EXPECT_NE(example_fingerprint(alone, 0, at::constant_pad_nd(mask[2], {3, 2})), own);
}

}  // namespace
}  // namespace headkit
