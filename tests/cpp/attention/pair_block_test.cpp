#include "attention/pair_block.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

#include "attention_case.h"

namespace headkit {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

AttentionProblem problem_with(const at::Tensor& gate, bool skip = true) {
  const int64_t heads = gate.size(-1);
  const AttentionCase a(gate.dim() == 1 ? 4 : gate.size(0), 5, heads, 2, 6);
  AttentionProblem problem;
  problem.x = a.x;
  problem.weights = a.weights;
  problem.heads = heads;
  problem.head_dim = 2;
  problem.gate = gate;
  problem.skip = skip;
  return problem;
}

// How often each pair is in a block, [B, H].
at::Tensor coverage(const AttentionProblem& problem, int64_t max_scores) {
  at::Tensor count = at::zeros({problem.x.size(0), problem.heads}, at::kLong);
  for (const PairBlock& block : pair_blocks(problem, max_scores)) {
    const int64_t samples = block.samples.count(), heads = block.heads.count();
    EXPECT_TRUE(samples * heads == 1 || samples * heads * 25 <= max_scores);
    block.add_to(count, 0, 1, at::ones({samples, heads}, at::kLong));
  }
  return count;
}

TEST(PairBlocks, HoldEveryOpenPairOnce) {
  at::manual_seed(3);
  for (int round = 0; round < 20; ++round) {
    const at::Tensor gate = at::rand({6, 5}) * at::rand({6, 5}).gt(0.05 * round);
    for (const int64_t max_scores : {int64_t{1}, int64_t{60}, int64_t{200}, kUnlimited}) {
      EXPECT_TRUE(at::equal(coverage(problem_with(gate), max_scores), gate.ne(0).to(at::kLong)));
      EXPECT_EQ(coverage(problem_with(gate, false), max_scores).sum().item<int64_t>(), 30);
    }
  }
}

TEST(PairBlocks, AreOneWhereAllSamplesAgree) {
  EXPECT_EQ(pair_blocks(problem_with(at::tensor({1.0, 0.0, 2.0})), kUnlimited).size(), 1);
  EXPECT_EQ(pair_blocks(problem_with(at::ones({4, 3})), kUnlimited).size(), 1);
  EXPECT_EQ(pair_blocks(problem_with(at::zeros({4, 3})), kUnlimited).size(), 0);
}

TEST(PairBlocks, ATokenGateOpensItsPair) {
  at::Tensor gate = at::zeros({2, 5, 3});
  gate.index_put_({at::tensor({1}), at::tensor({4}), at::tensor({2})}, -0.5);
  const at::Tensor found = coverage(problem_with(gate), kUnlimited);
  EXPECT_EQ(found.sum().item<int64_t>(), 1);
  EXPECT_EQ(found[1][2].item<int64_t>(), 1);
}

TEST(Rows, SelectAndAddAlikeForRunsAndScattered) {
  const at::Tensor table = at::arange(12).view({4, 3}).to(at::kDouble);
  for (const std::vector<int64_t>& chosen : {std::vector<int64_t>{1, 2}, {0, 3}, {2}, {}}) {
    const Rows rows(chosen, 4, at::kCPU);
    const at::Tensor index = rows.index();
    EXPECT_TRUE(at::equal(rows.of(table, 0), table.index_select(0, index)));
    at::Tensor sum = table.clone();
    rows.add_to(sum, 0, at::ones({rows.count(), 3}, at::kDouble));
    EXPECT_TRUE(
        at::equal(sum, table.index_add(0, index, at::ones({rows.count(), 3}, at::kDouble))));
  }
}

}  // namespace
}  // namespace headkit
