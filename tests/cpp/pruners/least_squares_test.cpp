#include "headkit/pruners/least_squares.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "support/golden.h"

namespace headkit {
namespace {

TEST(MaskTuningTest, GoldenRidge) {
  const auto& golden = testing::golden_case("kwon.mask_tuning_ridge");
  const at::Tensor a = testing::golden_tensor(golden["inputs"]["A"]);
  const at::Tensor b = testing::golden_tensor(golden["inputs"]["b"]);
  const double untuned = (a.sum(1) - b).square().sum().item<double>();
  EXPECT_NEAR(untuned, golden["expected"]["squared_residual_untuned"], 1e-8);
  std::vector<at::Tensor> masks, residuals;
  for (const auto& lambda : golden["inputs"]["lambda"]) {
    masks.push_back(tune_mask(at::mm(a.t(), a), at::mv(a.t(), b), lambda));
    residuals.push_back((at::mv(a, masks.back()) - b).square().sum());
    EXPECT_LE(residuals.back().item<double>(), untuned);
  }
  testing::expect_golden(at::stack(masks), golden, "m");
  testing::expect_golden(at::stack(residuals), golden, "squared_residual");
}

TEST(MaskTuningTest, GoldenDuplicate) {
  const auto& golden = testing::golden_case("kwon.mask_tuning_duplicate");
  const at::Tensor o = testing::golden_tensor(golden["inputs"]["o"]).to(at::kDouble);
  const at::Tensor square = o.square().sum().reshape({1, 1});
  std::vector<double> masks;
  for (const auto& lambda : golden["inputs"]["lambda"]) {
    masks.push_back(tune_mask(square, 2 * square[0], lambda).item<double>());
  }
  testing::expect_golden(at::tensor(masks, at::kDouble), golden, "m");
}

TEST(MaskTuningTest, NothingMissingOrNothingSeenGivesOne) {
  const at::Tensor a = at::randn({9, 4}, at::detail::createCPUGenerator(1), at::kDouble);
  const at::Tensor gram = at::mm(a.t(), a);
  EXPECT_TRUE(at::allclose(tune_mask(gram, gram.sum(1), 0), at::ones({4}, at::kDouble)));
  const at::Tensor nothing = at::zeros({4, 4}, at::kDouble);
  EXPECT_TRUE(at::equal(tune_mask(nothing, nothing[0], 0), at::ones({4}, at::kDouble)));
  EXPECT_EQ(tune_mask(at::zeros({0, 0}), at::zeros({0}), 1).numel(), 0);
  EXPECT_THROW(tune_mask(gram, gram.sum(1), -1), std::invalid_argument);
  EXPECT_THROW(tune_mask(gram, gram, 1), std::invalid_argument);
}

TEST(RefitTest, EqualsLeastSquares) {
  const at::Generator random = at::detail::createCPUGenerator(2);
  const at::Tensor x = at::randn({5, 40}, random, at::kDouble);
  const at::Tensor y = at::randn({3, 40}, random, at::kDouble);
  const at::Tensor start = at::randn({3, 5}, random, at::kDouble);
  const at::Tensor gram = at::mm(x, x.t()), cross = at::mm(y, x.t());
  EXPECT_TRUE(at::allclose(refit_projection(gram, cross, start, 0),
                           std::get<0>(at::linalg_lstsq(x.t(), y.t())).t()));
  EXPECT_TRUE(at::allclose(refit_projection(gram, cross, start, 1e12), start, 1e-6, 1e-6));
  // The gradient of the objective is 0 at the minimum.
  const at::Tensor w = refit_projection(gram, cross, start, 2.5);
  EXPECT_LT((at::mm(w, gram) - cross + 2.5 * (w - start)).abs().max().item<double>(), 1e-9);
}

TEST(ColumnSurgeonTest, GoldenRemoval) {
  const auto& golden = testing::golden_case("obs.structured_removal");
  const at::Tensor weight = testing::golden_tensor(golden["inputs"]["W"]);
  const at::Tensor x = testing::golden_tensor(golden["inputs"]["X"]);
  ColumnSurgeon surgeon(weight, at::mm(x, x.t()));
  const auto expect = [&](double found, const char* key) {
    EXPECT_NEAR(found, golden["expected"][key], 1e-8) << key;
  };
  expect(surgeon.score({1, 2}), "score");
  expect(surgeon.score({0, 1}), "score_of_columns_0_1");
  expect(surgeon.score({2, 3}), "score_of_columns_2_3");
  surgeon.remove({1, 2});
  testing::expect_golden(surgeon.weight(), golden, "W_new");
  expect(at::mm(surgeon.weight() - weight, x).square().sum().item<double>(), "squared_error");
  const at::Tensor left = at::tensor({0, 3});
  testing::expect_golden(surgeon.inverse().index_select(0, left).index_select(1, left), golden,
                         "H_inv_remaining");
}

TEST(ColumnSurgeonTest, StepsEqualOneRefitOnWhatIsLeft) {
  const at::Generator random = at::detail::createCPUGenerator(4);
  const at::Tensor x = at::randn({8, 50}, random, at::kDouble);
  const at::Tensor weight = at::randn({3, 8}, random, at::kDouble);
  ColumnSurgeon surgeon(weight, at::mm(x, x.t()));
  double errors = surgeon.score({2, 3}) / 2;
  surgeon.remove({2, 3});
  errors += surgeon.score({6, 7}) / 2;
  surgeon.remove({6, 7});
  const at::Tensor left = at::tensor({0, 1, 4, 5});
  const at::Tensor refit =
      std::get<0>(at::linalg_lstsq(x.index_select(0, left).t(), at::mm(weight, x).t())).t();
  EXPECT_TRUE(at::allclose(surgeon.weight().index_select(1, left), refit, 1e-9, 1e-9));
  EXPECT_EQ(surgeon.weight().index_select(1, at::tensor({2, 3, 6, 7})).abs().max().item<double>(),
            0);
  EXPECT_NEAR(at::mm(surgeon.weight() - weight, x).square().sum().item<double>(), errors, 1e-8);
  EXPECT_THROW(ColumnSurgeon(weight, at::zeros({8, 8}, at::kDouble)), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
