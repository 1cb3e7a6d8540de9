#include "headkit/gates/learned_gate_score.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "headkit/gates/subset_gates.h"

namespace headkit {
namespace {

TEST(LearnedGateScoreTest, IsTheParameterThatDecides) {
  SubsetGates gates({.layers = 2, .heads = 3, .keep = 2});
  const at::Tensor w = at::tensor({0.5, -1.0, 2.0, 1.5, 0.0, -3.0}, at::kDouble).reshape({2, 3});
  gates.set_parameter("w", w.clone().set_requires_grad(true));
  const HeadScores scores = learned_gate_scores(gates);
  EXPECT_TRUE(at::equal(scores.values, w));
  EXPECT_EQ(scores.metric, "learned_gates");
  EXPECT_THROW(learned_gate_scores(gates, "log_alpha"), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
