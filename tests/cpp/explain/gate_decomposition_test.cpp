#include "headkit/explain/gate_decomposition.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "headkit/gates/layer_gate.h"
#include "headkit/gates/linear_gate.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{2, 3, 2, 5, 0};

LinearLogits random_gate(uint64_t seed, int64_t heads = 6) {
  at::manual_seed(seed);
  LinearLogits gate;
  for (int64_t m = 0; m < heads; ++m) gate.heads.push_back({m / 3, m % 3});
  gate.weight = at::randn({heads, 5}, at::kDouble);
  gate.reference = at::randn({5}, at::kDouble);
  gate.base = 0.2 * at::randn({heads}, at::kDouble);
  return gate;
}

at::Tensor random_states(uint64_t seed, int64_t tokens = 7) {
  at::manual_seed(seed);
  return at::randn({tokens, 5}, at::kDouble);
}

// Size of the smallest set of tokens whose move changes the decision; 0 = none does.
int64_t smallest_flip(const GateDecomposition& found, int64_t index) {
  const auto count = static_cast<int64_t>(found.tokens().size());
  int64_t best = 0;
  for (uint64_t set = 1; set < (uint64_t{1} << count); ++set) {
    const int64_t size = std::popcount(set);
    if (best > 0 && size >= best) continue;
    std::vector<int64_t> moved;
    for (int64_t i = 0; i < count; ++i) {
      if (set >> i & 1) moved.push_back(found.tokens()[static_cast<size_t>(i)]);
    }
    const auto at = static_cast<size_t>(index);
    if (found.open_without(moved)[at] != found.open()[at]) best = size;
  }
  return best;
}

void expect_verified(const GateDecomposition& found, int64_t index, const GateFlip& flip) {
  const auto at = static_cast<size_t>(index);
  EXPECT_TRUE(flip.verified);
  if (flip.removed.empty()) return;
  EXPECT_NE(found.open_without(flip.removed)[at], found.open()[at]);
  std::vector<int64_t> fewer = flip.removed;
  fewer.pop_back();
  EXPECT_EQ(found.open_without(fewer)[at], found.open()[at]);
}

TEST(GateDecomposition, AddsUpInThreeWays) {
  const LinearLogits gate = random_gate(1);
  const at::Tensor states = random_states(2);
  const at::Tensor valid = at::tensor({1, 1, 0, 1, 1, 0, 1}).to(at::kBool);
  const GateDecomposition found(gate, states, valid);
  EXPECT_EQ(found.tokens(), (std::vector<int64_t>{0, 1, 3, 4, 6}));
  const at::Tensor mean = states.index({valid}).mean(0);
  const at::Tensor expected = gate.weight.mv(mean - gate.reference) + gate.base;
  EXPECT_TRUE(at::allclose(found.logits(), expected, 1e-12, 1e-12));
  EXPECT_TRUE(at::allclose(found.token_parts().sum(1) + gate.base, expected, 1e-12, 1e-12));
  EXPECT_TRUE(at::allclose(found.feature_parts().sum(1) + gate.base, expected, 1e-12, 1e-12));
  for (int64_t m = 0; m < 6; ++m) {
    EXPECT_TRUE(at::allclose(found.joint(m).sum(1), found.token_parts()[m], 1e-12, 1e-12));
    EXPECT_TRUE(at::allclose(found.joint(m).sum(0), found.feature_parts()[m], 1e-12, 1e-12));
    EXPECT_LE(found.residual(m), 1e-12);
  }
}

TEST(GateDecomposition, HasTheLogitsOfTheGateItself) {
  const auto model = testing::random_toy_model(kLayout, 2, 3);
  Batch batch = testing::random_toy_batch(kLayout, 4, 6, 2, 5);
  const at::Tensor x = batch.at("x").to(at::kFloat), mask = batch.at("attention_mask");
  LinearGateSettings settings;
  at::manual_seed(4);
  settings.weight = at::randn({2, 3, 6}, at::kDouble);
  settings.reference = at::randn({6}, at::kDouble);
  settings.static_logits = at::randn({2, 3}, at::kDouble);
  settings.features = {"log_length"};
  const LinearGate gate(settings);
  const at::Tensor z = gate.logits(x, mask);
  ASSERT_EQ(linear_logits(gate).size(), 1u);
  for (int64_t b = 0; b < 4; ++b) {
    const GateDecomposition found(linear_logits(gate)[0], x[b], mask[b]);
    EXPECT_TRUE(at::equal(found.logits(), z[b].flatten()));
    for (int64_t m = 0; m < 6; ++m) {
      EXPECT_LE(found.residual(m),
                1e-5 * std::max(1.0, std::abs(found.logits()[m].item<double>())));
      expect_verified(found, m, *found.flip(m));
    }
  }
  LayerGateSettings by_layer;
  by_layer.weight = settings.weight;
  by_layer.reference = at::randn({2, 6}, at::kDouble);
  by_layer.static_logits = settings.static_logits;
  by_layer.features = {"log_length"};
  const LayerGate layers(by_layer);
  ASSERT_EQ(linear_logits(layers).size(), 2u);
  for (int64_t l = 0; l < 2; ++l) {
    const GateDecomposition found(linear_logits(layers)[static_cast<size_t>(l)], x[1], mask[1]);
    EXPECT_TRUE(at::equal(found.logits(), layers.logits(l, x, mask)[1]));
    EXPECT_EQ(found.gate().heads[2], (HeadId{l, 2}));
  }
}

// explanations.md 8.1: w_h reads only the cue block, so the cue token carries all of the logit.
TEST(GateDecomposition, FindsThePlantedCue) {
  LinearLogits gate;
  gate.heads = {{0, 0}, {0, 1}};
  gate.weight = at::zeros({2, 4}, at::kDouble);
  gate.weight[0][3] = 8;
  gate.weight[1][3] = -8;
  gate.reference = at::zeros({4}, at::kDouble);
  gate.reference_name = "origin";
  gate.base = at::tensor({-0.5, 0.5}, at::kDouble);
  gate.rule.threshold = 0.25;
  at::Tensor states = at::zeros({4, 4}, at::kDouble);
  for (int64_t t = 0; t < 4; ++t) states[t][t % 3] = 1;
  states[2][3] = 1;
  const GateDecomposition found(gate, states);
  const GateCut cut = found.cut(0);
  EXPECT_DOUBLE_EQ(found.token_parts()[0][2].item<double>(), *cut.margin + 0.25 + 0.5);
  EXPECT_DOUBLE_EQ(*cut.margin, 1.25);
  EXPECT_DOUBLE_EQ(*cut.distance, 1.25 / 8);
  EXPECT_EQ(*cut.rank, 1);
  for (int64_t m = 0; m < 2; ++m) {
    const GateFlip flip = *found.flip(m);
    EXPECT_EQ(flip.removed, std::vector<int64_t>{2});
    EXPECT_TRUE(flip.minimal);
    expect_verified(found, m, flip);
  }
  EXPECT_NEAR(*found.control_share(), 0.0625 / (0.0625 + 0.25 + 0.0625 + 0.0625), 1e-12);
}

TEST(GateDecomposition, FlipsOfAThresholdAreMinimal) {
  int64_t minimal = 0, none = 0, floors = 0;
  for (uint64_t seed = 0; seed < 25; ++seed) {
    LinearLogits gate = random_gate(seed);
    gate.rule.threshold = seed % 2 == 0 ? 0.1 : 0.7;
    gate.rule.min_heads = static_cast<int64_t>(seed % 4);
    gate.rule.fixed = at::tensor({0, 1, 0, 0, -1, 0}, at::kChar);
    const GateDecomposition found(gate, random_states(100 + seed));
    EXPECT_FALSE(found.flip(1));
    EXPECT_FALSE(found.cut(4).margin);
    for (const int64_t m : {0, 2, 3, 5}) {
      const GateFlip flip = *found.flip(m);
      expect_verified(found, m, flip);
      const int64_t smallest = smallest_flip(found, m);
      if (flip.minimal) {
        EXPECT_EQ(static_cast<int64_t>(flip.removed.size()), smallest);
        ++minimal;
      }
      if (flip.removed.empty()) ++none;
      if (gate.rule.min_heads == 0) {
        EXPECT_EQ(static_cast<int64_t>(flip.removed.size()), smallest);
        EXPECT_EQ(flip.minimal, smallest > 0);
      } else {
        ++floors;
      }
    }
  }
  EXPECT_GT(minimal, 30);
  EXPECT_GT(none, 0);
  EXPECT_GT(floors, 0);
}

TEST(GateDecomposition, ExplainsTopKByItsRival) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    LinearLogits gate = random_gate(seed);
    gate.rule = {.kind = DecisionRule::Kind::kTopK, .k = 2};
    const GateDecomposition found(gate, random_states(50 + seed));
    const at::Tensor z = found.logits();
    const auto [sorted, order] = z.sort(-1, true);
    for (int64_t m = 0; m < 6; ++m) {
      const bool kept = z[m].item<double>() >= sorted[1].item<double>();
      EXPECT_EQ(found.open()[static_cast<size_t>(m)] != 0, kept);
      const int64_t rival = order[kept ? 2 : 1].item<int64_t>();
      const GateCut cut = found.cut(m);
      EXPECT_NEAR(*cut.margin, (z[m] - z[rival]).item<double>(), 1e-12);
      EXPECT_NEAR(
          *cut.distance,
          std::abs(*cut.margin) / (gate.weight[m] - gate.weight[rival]).norm().item<double>(),
          1e-12);
      EXPECT_EQ(order[*cut.rank - 1].item<int64_t>(), m);
      ASSERT_EQ(cut.rivals.size(), 2u);
      const GateFlip flip = *found.flip(m);
      EXPECT_FALSE(flip.minimal);
      expect_verified(found, m, flip);
    }
  }
}

TEST(GateDecomposition, ExplainsABudgetByLogitPerCost) {
  LinearLogits gate = random_gate(5);
  gate.rule.kind = DecisionRule::Kind::kBudget;
  gate.rule.budget = 5;
  gate.rule.cost = at::tensor({1., 2., 4., 1., 2., 4.}, at::kDouble);
  const GateDecomposition found(gate, random_states(9));
  const at::Tensor ratio = found.logits() / gate.rule.cost;
  const auto [sorted, order] = ratio.sort(-1, true);
  double spent = 0;
  int64_t kept = 0;
  while (kept < 6 && spent + gate.rule.cost[order[kept]].item<double>() <= 5) {
    spent += gate.rule.cost[order[kept++]].item<double>();
  }
  ASSERT_GT(kept, 0);
  ASSERT_LT(kept, 6);
  for (int64_t place = 0; place < 6; ++place) {
    const int64_t m = order[place].item<int64_t>();
    const int64_t rival = order[place < kept ? kept : kept - 1].item<int64_t>();
    EXPECT_EQ(found.open()[static_cast<size_t>(m)] != 0, place < kept);
    EXPECT_NEAR(*found.cut(m).margin, (ratio[m] - ratio[rival]).item<double>(), 1e-12);
    expect_verified(found, m, *found.flip(m));
  }
}

TEST(GateDecomposition, ControlShareIsWhatCanMoveTheGate) {
  LinearLogits gate = random_gate(3, 3);
  gate.weight[2].copy_(gate.weight[0] + gate.weight[1]);
  const at::Tensor states = random_states(4);
  const GateDecomposition found(gate, states);
  const at::Tensor w = gate.weight.slice(0, 0, 2);
  const at::Tensor x = states.mean(0) - gate.reference;
  // Least squares in the two independent rows, by the normal equations.
  const at::Tensor seen = w.t().mv(at::linalg_solve(w.mm(w.t()), w.mv(x)));
  EXPECT_NEAR(*found.control_share(), (seen.dot(seen) / x.dot(x)).item<double>(), 1e-10);
  at::Tensor moved = states + (x - seen);
  EXPECT_TRUE(at::allclose(GateDecomposition(gate, moved).logits(), found.logits(), 1e-9, 1e-9));
  EXPECT_FALSE(GateDecomposition(gate, gate.reference.expand({4, 5})).control_share());
}

TEST(GateDecomposition, LeavesItsInputsAloneAndRefusesWhatDoesNotFit) {
  const LinearLogits gate = random_gate(1);
  const at::Tensor states = random_states(2), before = states.clone();
  const GateDecomposition found(gate, states);
  for (int64_t m = 0; m < 6; ++m) found.flip(m);
  EXPECT_TRUE(at::equal(states, before));
  EXPECT_THROW(GateDecomposition(gate, states.slice(1, 0, 4)), std::invalid_argument);
  EXPECT_THROW(GateDecomposition(gate, states, at::ones({3}, at::kBool)), std::invalid_argument);
  EXPECT_THROW(found.open_without({7}), std::out_of_range);
  LinearLogits other = gate;
  other.rule = {.kind = DecisionRule::Kind::kTopK, .k = 7};
  EXPECT_THROW(GateDecomposition(other, states), std::invalid_argument);
  other.rule = {.kind = DecisionRule::Kind::kBudget, .budget = 1};
  EXPECT_THROW(GateDecomposition(other, states), std::invalid_argument);
  other = gate;
  other.base = gate.base.slice(0, 0, 2);
  EXPECT_THROW(GateDecomposition(other, states), std::invalid_argument);
  // No tokens: the base alone decides, and nothing can be moved.
  const GateDecomposition empty(gate, states, at::zeros({7}, at::kBool));
  EXPECT_TRUE(at::allclose(empty.logits(), gate.base));
  EXPECT_TRUE(empty.flip(0)->removed.empty());
  EXPECT_TRUE(empty.flip(0)->verified);
}

}  // namespace
}  // namespace headkit
