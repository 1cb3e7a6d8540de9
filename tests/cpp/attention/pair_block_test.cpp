#include "attention/pair_block.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "attention_case.h"

namespace headkit {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

AttentionProblem problem_with(const at::Tensor& gate, bool skip = true,
                              std::vector<int64_t> kv_head = {}) {
  const int64_t heads = gate.size(-1);
  const AttentionCase a(gate.dim() == 1 ? 4 : gate.size(0), 5, heads, 2, 6);
  AttentionProblem problem;
  problem.x = a.x;
  problem.weights = a.weights;
  problem.heads = heads;
  problem.kv_head = std::move(kv_head);
  if (problem.kv_head.empty()) {
    problem.kv_head.resize(heads);
    std::iota(problem.kv_head.begin(), problem.kv_head.end(), 0);
  }
  problem.kv_heads = *std::max_element(problem.kv_head.begin(), problem.kv_head.end()) + 1;
  problem.num_keys = 5;
  problem.head_dim = 2;
  problem.gate = gate;
  problem.skip = skip;
  return problem;
}

std::vector<PairBlock> blocks_of(const AttentionProblem& problem, int64_t max_scores) {
  return pair_blocks(problem, open_pairs(problem), max_scores);
}

// How often each pair is in a block, [B, H].
at::Tensor coverage(const AttentionProblem& problem, int64_t max_scores) {
  at::Tensor count = at::zeros({problem.x.size(0), problem.heads}, at::kLong);
  for (const PairBlock& block : blocks_of(problem, max_scores)) {
    const int64_t samples = block.samples.count(), heads = block.heads.count();
    EXPECT_TRUE(samples * heads == 1 || samples * heads * 25 <= max_scores);
    block.pairs().add_to(count, 0, 1, at::ones({samples, heads}, at::kLong));
    const int64_t group = heads / block.kv_heads.count();
    for (int64_t i = 0; i < heads; ++i) {
      EXPECT_EQ(problem.kv_head[block.heads.index()[i].item<int64_t>()],
                block.kv_heads.index()[i / group].item<int64_t>());
    }
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
  EXPECT_EQ(blocks_of(problem_with(at::tensor({1.0, 0.0, 2.0})), kUnlimited).size(), 1);
  EXPECT_EQ(blocks_of(problem_with(at::ones({4, 3})), kUnlimited).size(), 1);
  EXPECT_EQ(blocks_of(problem_with(at::zeros({4, 3})), kUnlimited).size(), 0);
}

TEST(PairBlocks, KeepQueryHeadsWithTheirKvHead) {
  at::manual_seed(4);
  for (const std::vector<int64_t>& kv_head :
       {std::vector<int64_t>{0, 0, 0, 1, 1, 1}, {0, 1, 1, 1, 2, 3}, {2, 0, 1, 0, 2, 2}}) {
    for (const double open : {0.3, 0.7, 1.0}) {
      const at::Tensor gate = at::rand({4, 6}).lt(open).to(at::kFloat);
      for (const int64_t max_scores : {int64_t{1}, int64_t{60}, int64_t{200}, kUnlimited}) {
        const AttentionProblem problem = problem_with(gate, true, kv_head);
        EXPECT_TRUE(at::equal(coverage(problem, max_scores), gate.ne(0).to(at::kLong)));
      }
    }
  }
  EXPECT_EQ(blocks_of(problem_with(at::ones({4, 6}), true, {0, 0, 0, 1, 1, 1}), kUnlimited).size(),
            1);
}

TEST(PairBlocks, DoNotCopyGivenKeysOfAllHeads) {
  AttentionProblem problem = problem_with(at::ones({4, 6}), true, {2, 0, 1, 0, 2, 2});
  problem.k = problem.v = at::randn({4, 3, 5, 2}, at::kDouble);
  for (const PairBlock& block : blocks_of(problem, kUnlimited)) {
    EXPECT_TRUE(block.kv_pairs().of(problem.k, 0, 1).is_alias_of(problem.k));
  }
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
  for (const std::vector<int64_t>& chosen :
       {std::vector<int64_t>{1, 2}, {0, 3}, {2}, {}, {0, 2, 1, 3}}) {
    const Rows rows(chosen, 4, at::kCPU);
    const at::Tensor index = rows.index();
    EXPECT_TRUE(at::equal(rows.of(table, 0), table.index_select(0, index)));
    at::Tensor sum = table.clone();
    rows.add_to(sum, 0, at::ones({rows.count(), 3}, at::kDouble));
    EXPECT_TRUE(
        at::equal(sum, table.index_add(0, index, at::ones({rows.count(), 3}, at::kDouble))));
  }
}

TEST(Pairs, SelectAndAddWhereverTheyLie) {
  const at::Tensor table = at::arange(4 * 2 * 5).view({4, 2, 5}).to(at::kDouble);
  const std::vector<int64_t> choices[] = {{1, 2}, {0, 3}, {2, 0}};
  for (const auto& sample_rows : choices) {
    for (const auto& head_rows : choices) {
      const Rows samples(sample_rows, 4, at::kCPU), heads(head_rows, 5, at::kCPU);
      const Pairs pairs{samples, heads};
      const at::Tensor chosen =
          table.index_select(0, samples.index()).index_select(2, heads.index());
      EXPECT_TRUE(at::equal(pairs.of(table, 0, 2), chosen));
      at::Tensor sum = table.clone();
      pairs.add_to(sum, 0, 2, chosen);
      EXPECT_TRUE(at::equal(pairs.of(sum, 0, 2), 2 * chosen));
      EXPECT_EQ((sum - table).ne(0).sum().item<int64_t>(), chosen.ne(0).sum().item<int64_t>());
    }
  }
}

}  // namespace
}  // namespace headkit
