#include "headkit/models/objective.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

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
  const Batch batch{{"labels", at::empty({0}, at::kLong)}};
  const at::Tensor output = at::empty({0, 3});
  for (const std::string& name : objective_names()) {
    EXPECT_EQ(make_objective(name)->loss(output, batch, output).numel(), 0) << name;
  }
}

}  // namespace
}  // namespace headkit
