#include "headkit/pruners/rearrangement.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "support/golden.h"

namespace headkit {
namespace {

TEST(RearrangementTest, GoldenSwap) {
  const auto& golden = testing::golden_case("kwon.rearrangement");
  std::vector<at::Tensor> gradients;
  for (const char* name : {"A", "B", "C", "D"}) {
    gradients.push_back(
        testing::golden_tensor(golden["inputs"]["gradients"][name]).to(at::kDouble));
  }
  const at::Tensor rows = at::stack(gradients);
  const at::Tensor gram = at::mm(rows, rows.t());
  const std::vector<int64_t> closed = rearrange_closed(gram, golden["inputs"]["prune"]);
  EXPECT_EQ(closed[1], 3);
  EXPECT_LE(closed[0], 1);
  EXPECT_NEAR(closed_objective(gram, {0, 1}), golden["expected"]["start_objective"], 1e-12);
  EXPECT_NEAR(closed_objective(gram, closed), golden["expected"]["best_objective"], 1e-12);
}

TEST(RearrangementTest, NeverAboveTheStartNorBelowBruteForce) {
  const at::Generator random = at::detail::createCPUGenerator(3);
  for (int round = 0; round < 20; ++round) {
    const at::Tensor rows = at::randn({7, 4}, random, at::kDouble);
    const at::Tensor gram = at::mm(rows, rows.t());
    const at::Tensor by_norm = gram.diagonal().argsort();
    for (int64_t count = 0; count <= 7; ++count) {
      const std::vector<int64_t> closed = rearrange_closed(gram, count);
      ASSERT_EQ(static_cast<int64_t>(closed.size()), count);
      const int64_t* least = by_norm.const_data_ptr<int64_t>();
      const double found = closed_objective(gram, closed);
      EXPECT_LE(found, closed_objective(gram, {least, least + count}) + 1e-12);
      double best = INFINITY;
      for (int64_t bits = 0; bits < 128; ++bits) {
        std::vector<int64_t> set;
        for (int64_t i = 0; i < 7; ++i) {
          if ((bits >> i) & 1) set.push_back(i);
        }
        if (static_cast<int64_t>(set.size()) == count) {
          best = std::min(best, closed_objective(gram, set));
        }
      }
      EXPECT_GE(found, best - 1e-12);
      const double objective =
          rows.index_select(0, at::tensor(closed, at::kLong)).sum(0).square().sum().item<double>();
      EXPECT_NEAR(found, objective, 1e-10);
    }
  }
  EXPECT_THROW(rearrange_closed(at::zeros({2, 3}), 1), std::invalid_argument);
  EXPECT_THROW(rearrange_closed(at::zeros({3, 3}), 4), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
