#include "headkit/models/objective.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/golden.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

using namespace headkit::testing;

class GoldenObjectives : public ::testing::Test {
 protected:
  const nlohmann::json& golden = golden_case("toy.objectives");
  std::shared_ptr<ToyModel> model = golden_toy_model();
  Batch batch = golden_toy_batch();
  GateSet gates{.heads = golden_tensor(golden["inputs"]["gates"]).to(at::kDouble)};
  at::Tensor gated = (*model)(batch, gates);
  at::Tensor dense = (*model)(batch);

  at::Tensor pooled(const GateSet& set) {
    return model->pooled(model->run(model->embed(batch), 0, 2, set));
  }
};

TEST_F(GoldenObjectives, PerExampleValues) {
  expect_golden(gated, golden, "logits");
  expect_golden(cross_entropy()->loss(gated, batch, {}), golden, "cross_entropy");
  expect_golden(-margin()->loss(gated, batch, {}), golden, "margin");
  expect_golden(kl_to_dense()->loss(gated, batch, dense), golden, "kl");
  expect_golden(kl_to_dense(2.0)->loss(gated, batch, dense), golden, "kl_T2");
  expect_golden(1 - cosine_to_dense()->loss(pooled(gates), batch, pooled({})), golden, "cosine");
}

TEST_F(GoldenObjectives, DenseLosses) {
  const nlohmann::json& toy = golden_case("toy.model");
  expect_golden(cross_entropy()->loss(dense, batch, {}), toy, "loss_per_example");
  for (const std::string& name : {"kl_to_dense", "cosine_to_dense"}) {
    const auto objective = make_objective(name);
    EXPECT_TRUE(objective->needs_dense() && objective->stationary_at_dense());
    EXPECT_LT(objective->loss(dense, batch, dense).abs().max().item<double>(), 1e-12) << name;
    EXPECT_THROW(objective->loss(gated, batch, {}), std::invalid_argument);
    EXPECT_THROW(objective->loss(gated, batch, dense.slice(1, 0, 2)), std::invalid_argument);
  }
}

TEST_F(GoldenObjectives, RefuseBadLabels) {
  for (const auto& objective : {cross_entropy(), margin()}) {
    EXPECT_FALSE(objective->needs_dense() || objective->stationary_at_dense());
    EXPECT_THROW(objective->loss(gated, {}, {}), std::invalid_argument);
    const auto with = [&](const at::Tensor& labels) {
      objective->loss(gated, {{"labels", labels}}, {});
    };
    EXPECT_THROW(with(at::tensor({0, 1, 3}, at::kLong)), std::invalid_argument);
    EXPECT_THROW(with(at::tensor({0, -1, 2}, at::kLong)), std::invalid_argument);
    EXPECT_THROW(with(at::tensor({0, 1}, at::kLong)), std::invalid_argument);
    EXPECT_THROW(with(at::ones({3})), std::invalid_argument);
    EXPECT_THROW(objective->loss(gated.unsqueeze(0), batch, {}), std::invalid_argument);
  }
}

TEST(ObjectiveTest, RegistryKnowsEveryName) {
  for (const std::string& name : objective_names()) EXPECT_EQ(make_objective(name)->name(), name);
  EXPECT_THROW(make_objective("perplexity"), std::invalid_argument);
  EXPECT_THROW(kl_to_dense(0), std::invalid_argument);
}

TEST(ObjectiveTest, AnEmptyBatchHasNoLosses) {
  const Batch classes{{"labels", at::empty({0}, at::kLong)}};
  const Batch tokens{{"labels", at::empty({0, 2}, at::kLong)}};
  for (const std::string& name : objective_names()) {
    const bool of_tokens = name == "next_token" || name == "seq2seq";
    const at::Tensor output = of_tokens ? at::empty({0, 2, 3}) : at::empty({0, 3});
    const at::Tensor losses =
        make_objective(name)->loss(output, of_tokens ? tokens : classes, output);
    EXPECT_EQ(losses.numel(), 0) << name;
  }
}

// Probabilities 1/2, 1/4, 1/4 of the classes at every token.
at::Tensor skewed_logits(int64_t batch, int64_t tokens) {
  return at::tensor({0.5, 0.25, 0.25}, at::kDouble).log().expand({batch, tokens, 3}).clone();
}

TEST(ObjectiveTest, TokenLossesAreMeansOverTheTokensThatCount) {
  const at::Tensor output = skewed_logits(2, 3);
  const Batch batch{{"labels", at::tensor({0, 1, -100, 2, 2, 0}, at::kLong).reshape({2, 3})}};
  const double ln2 = std::log(2.0);
  const auto expect = [&](const std::shared_ptr<Objective>& objective, double first,
                          double second) {
    const at::Tensor losses = objective->loss(output, batch, output);
    EXPECT_NEAR(losses[0].item<double>(), first, 1e-12) << objective->name();
    EXPECT_NEAR(losses[1].item<double>(), second, 1e-12) << objective->name();
  };
  expect(cross_entropy(), 1.5 * ln2, 5.0 / 3 * ln2);
  expect(seq2seq(), 1.5 * ln2, 5.0 / 3 * ln2);
  expect(next_token(), 2 * ln2, 1.5 * ln2);
  expect(margin(), 0, ln2 / 3);
  expect(kl_to_dense(), 0, 0);
}

TEST(ObjectiveTest, NextTokenReadsInputsWithoutTheirPadding) {
  const at::Tensor output = skewed_logits(2, 3);
  Batch batch{{"input_ids", at::tensor({1, 0, 2, 0, 1, 0}, at::kLong).reshape({2, 3})}};
  const double ln2 = std::log(2.0);
  at::Tensor losses = next_token()->loss(output, batch, {});
  EXPECT_NEAR(losses[0].item<double>(), 1.5 * ln2, 1e-12);
  batch["attention_mask"] = at::tensor({1, 1, 0, 0, 1, 1}, at::kLong).reshape({2, 3});
  losses = next_token()->loss(output, batch, {});
  EXPECT_NEAR(losses[0].item<double>(), ln2, 1e-12);
  EXPECT_NEAR(losses[1].item<double>(), ln2, 1e-12);
}

TEST(ObjectiveTest, DivergenceCountsTheTokensOfItsOwnMask) {
  const at::Tensor dense = skewed_logits(2, 3);
  at::Tensor gated = dense.clone();
  gated.select(1, 2).zero_();
  const at::Tensor mask = at::tensor({1, 1, 0, 1, 1, 1}, at::kLong).reshape({2, 3});
  const double kl = 0.5 * std::log(1.5) + 0.5 * std::log(0.75);
  for (const char* name : {"attention_mask", "decoder_attention_mask"}) {
    const at::Tensor losses = kl_to_dense()->loss(gated, {{name, mask}}, dense);
    EXPECT_EQ(losses[0].item<double>(), 0) << name;
    EXPECT_NEAR(losses[1].item<double>(), kl / 3, 1e-12) << name;
  }
  const Batch encoder_mask{{"attention_mask", mask}, {"decoder_input_ids", mask}};
  EXPECT_NEAR(kl_to_dense()->loss(gated, encoder_mask, dense)[0].item<double>(), kl / 3, 1e-12);
}

TEST(ObjectiveTest, RefuseTokenLabelsThatDoNotFit) {
  const at::Tensor output = skewed_logits(2, 3);
  const auto with = [&](const Objective& objective, const at::Tensor& labels) {
    objective.loss(output, {{"labels", labels}}, {});
  };
  for (const auto& objective : {cross_entropy(), next_token(), seq2seq(), margin()}) {
    EXPECT_THROW(objective->loss(output, {}, {}), std::invalid_argument);
    EXPECT_THROW(with(*objective, at::zeros({2}, at::kLong)), std::invalid_argument);
    EXPECT_THROW(with(*objective, at::zeros({2, 4}, at::kLong)), std::invalid_argument);
    EXPECT_THROW(with(*objective, at::zeros({2, 3})), std::invalid_argument);
    EXPECT_THROW(with(*objective, at::full({2, 3}, 3, at::kLong)), std::invalid_argument);
    EXPECT_THROW(with(*objective, at::full({2, 3}, -1, at::kLong)), std::invalid_argument);
    EXPECT_THROW(with(*objective, at::full({2, 3}, -100, at::kLong)), std::invalid_argument);
  }
  EXPECT_THROW(next_token()->loss(output[0], {{"labels", at::zeros({2}, at::kLong)}}, {}),
               std::invalid_argument);
  EXPECT_THROW(seq2seq()->loss(output[0], {{"labels", at::zeros({3}, at::kLong)}}, {}),
               std::invalid_argument);
}

}  // namespace
}  // namespace headkit
