#include "feed_forward/sample_groups.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <stdexcept>

namespace headkit {
namespace {

FeedForwardProblem problem_of(const at::Tensor& gate, int64_t batch) {
  FeedForwardProblem problem;
  problem.x = at::zeros({batch, 2, 4});
  problem.block_size = 8;
  problem.neurons = 20;
  problem.blocks = 3;
  problem.gate = gate;
  return problem;
}

at::Tensor gates(std::vector<float> values) {
  return at::tensor(at::ArrayRef<float>(values)).view({-1, 3});
}

TEST(SampleGroups, AreOneWithoutGatesOrWithOneForAll) {
  for (const at::Tensor& gate : {at::Tensor(), at::tensor({1.0f, 0.0f, 0.5f})}) {
    const auto groups = sample_groups(problem_of(gate, 3), true);
    ASSERT_EQ(groups.size(), 1u);
    EXPECT_EQ(groups[0].samples, (std::vector<int64_t>{0, 1, 2}));
    if (!gate.defined()) {
      EXPECT_EQ(groups[0].blocks, (std::vector<int32_t>{0, 1, 2}));
    } else {
      EXPECT_EQ(groups[0].blocks, (std::vector<int32_t>{0, 2}));
      EXPECT_EQ(groups[0].scale, (std::vector<float>{1.0f, 0.5f}));
    }
  }
}

TEST(SampleGroups, HoldSamplesWithTheSameGates) {
  const at::Tensor gate = gates({1, 0, 2, 1, 1, 1, 1, 0, 2, 3, 0, 2});
  const auto by_value = sample_groups(problem_of(gate, 4), true);
  ASSERT_EQ(by_value.size(), 3u);
  EXPECT_EQ(by_value[0].samples, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(by_value[1].samples, (std::vector<int64_t>{1}));
  EXPECT_EQ(by_value[2].scale, (std::vector<float>{3, 2}));
  const auto by_openness = sample_groups(problem_of(gate, 4), false);
  ASSERT_EQ(by_openness.size(), 2u);
  EXPECT_EQ(by_openness[0].samples, (std::vector<int64_t>{0, 2, 3}));
}

TEST(SampleGroups, KeepClosedBlocksInMaskMode) {
  FeedForwardProblem problem = problem_of(gates({0, 1, 0}), 1);
  problem.skip = false;
  const auto groups = sample_groups(problem, true);
  EXPECT_EQ(groups[0].blocks, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(groups[0].scale, (std::vector<float>{0, 1, 0}));
}

TEST(SampleGroups, RefuseInfinity) {
  EXPECT_THROW(sample_groups(problem_of(gates({0, 1, INFINITY}), 1), true), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
