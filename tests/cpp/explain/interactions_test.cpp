#include "headkit/explain/interactions.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "explain/gauss_legendre.h"
#include "headkit/scorers/shapley.h"

namespace headkit {
namespace {

at::Tensor random_worth(int64_t players, uint64_t seed) {
  return at::randn({int64_t{1} << players}, at::detail::createCPUGenerator(seed), at::kDouble);
}

SetWorth game_of(const at::Tensor& worth, int64_t players) {
  return [=](const at::Tensor& sets) {
    const at::Tensor bit = at::pow(2, at::arange(players)).to(at::kDouble);
    return worth.index_select(0, at::mv(sets, bit).to(at::kLong));
  };
}

double factorial(int64_t n) { return std::tgamma(static_cast<double>(n) + 1); }

TEST(InteractionsTest, SampledShapleyValuesComeCloseAndAddUp) {
  const int64_t players = 6;
  const at::Tensor worth = random_worth(players, 1);
  const SampledShapley sample = sample_shapley(game_of(worth, players), players, 4000, 2);
  const at::Tensor exact = shapley_values(worth);
  EXPECT_NEAR(sample.values.sum().item<double>(), (worth[63] - worth[0]).item<double>(), 1e-12);
  EXPECT_LT(((sample.values - exact).abs() / sample.errors).max().item<double>(), 4.5);
  EXPECT_LT(sample.errors.max().item<double>(), 0.05);
}

TEST(InteractionsTest, AnAdditiveGameNeedsNoSample) {
  const at::Tensor parts = at::tensor({0.5, -2.0, 3.0}, at::kDouble);
  const SetWorth play = [&](const at::Tensor& sets) { return at::mv(sets, parts) + 7; };
  const SampledShapley sample = sample_shapley(play, 3, 4, 0);
  EXPECT_TRUE(at::allclose(sample.values, parts, 0, 1e-12));
  EXPECT_TRUE(at::allclose(sample.errors, at::zeros({3}, at::kDouble), 0, 1e-12));
  const at::Tensor worth = worth_of_all_sets(play, 3);
  EXPECT_TRUE(at::allclose(shapley_interactions(worth), at::zeros({3, 3}, at::kDouble), 0, 1e-12));
  const FaithfulInteractions fit = faithful_interactions(play, 3, 100, 0);
  EXPECT_TRUE(fit.exact);
  EXPECT_TRUE(at::allclose(fit.singles, parts, 0, 1e-10));
  EXPECT_LT(fit.pairs.abs().max().item<double>(), 1e-10);
}

TEST(InteractionsTest, ShapleyInteractionsFollowTheirDefinition) {
  const int64_t players = 5;
  const at::Tensor worth = random_worth(players, 3);
  const at::Tensor found = shapley_interactions(worth);
  const auto v = [&](int64_t set) { return worth[set].item<double>(); };
  for (int64_t a = 0; a < players; ++a) {
    for (int64_t b = 0; b < players; ++b) {
      double expected = 0;
      for (int64_t set = 0; set < 32 && a != b; ++set) {
        if ((set >> a & 1) != 0 || (set >> b & 1) != 0) continue;
        const int64_t size = __builtin_popcountll(static_cast<uint64_t>(set));
        const int64_t with_a = set | int64_t{1} << a, with_b = set | int64_t{1} << b;
        expected += factorial(size) * factorial(players - size - 2) / factorial(players - 1) *
                    (v(with_a | with_b) - v(with_a) - v(with_b) + v(set));
      }
      EXPECT_NEAR(found[a][b].item<double>(), expected, 1e-12);
    }
  }
}

// The fit by its definition: normal equations with Lagrange multipliers for v(none) and v(all).
at::Tensor constrained_fit(const at::Tensor& worth, int64_t players) {
  std::vector<std::pair<int64_t, int64_t>> terms{{-1, -1}};
  for (int64_t p = 0; p < players; ++p) terms.emplace_back(p, p);
  for (int64_t a = 0; a < players; ++a) {
    for (int64_t b = a + 1; b < players; ++b) terms.emplace_back(a, b);
  }
  const auto count = static_cast<int64_t>(terms.size());
  const int64_t sets = worth.size(0);
  at::Tensor design = at::zeros({sets, count}, at::kDouble);
  at::Tensor weight = at::zeros({sets}, at::kDouble);
  for (int64_t set = 0; set < sets; ++set) {
    const int64_t size = __builtin_popcountll(static_cast<uint64_t>(set));
    if (size > 0 && size < players) {
      const double choose = factorial(players) / factorial(size) / factorial(players - size);
      weight[set] = static_cast<double>(players - 1) /
                    (choose * static_cast<double>(size * (players - size)));
    }
    for (int64_t t = 0; t < count; ++t) {
      const auto [a, b] = terms[static_cast<size_t>(t)];
      if (a < 0 || ((set >> a & 1) != 0 && (set >> b & 1) != 0)) design[set][t] = 1;
    }
  }
  const at::Tensor weighted = design.t() * weight;
  const at::Tensor ends = at::stack({design[0], design[sets - 1]});
  const at::Tensor system = at::cat({at::cat({weighted.matmul(design), ends.t()}, 1),
                                     at::cat({ends, at::zeros({2, 2}, at::kDouble)}, 1)});
  const at::Tensor right = at::cat({weighted.mv(worth), at::stack({worth[0], worth[sets - 1]})});
  return at::linalg_solve(system, right).slice(0, 1, count);
}

TEST(InteractionsTest, FaithfulInteractionsAreTheConstrainedFit) {
  for (const int64_t players : {2, 5, 8}) {
    const at::Tensor worth = random_worth(players, 4);
    const FaithfulInteractions fit =
        faithful_interactions(game_of(worth, players), players, 1 << players, 0);
    EXPECT_TRUE(fit.exact);
    const at::Tensor expected = constrained_fit(worth, players);
    EXPECT_TRUE(at::allclose(fit.singles, expected.slice(0, 0, players), 0, 1e-9));
    int64_t next = players;
    for (int64_t a = 0; a < players; ++a) {
      for (int64_t b = a + 1; b < players; ++b, ++next) {
        EXPECT_NEAR(fit.pairs[a][b].item<double>(), expected[next].item<double>(), 1e-9);
        EXPECT_EQ(fit.pairs[b][a].item<double>(), fit.pairs[a][b].item<double>());
      }
    }
    const double all = fit.singles.sum().item<double>() + fit.pairs.sum().item<double>() / 2;
    EXPECT_NEAR(all, (worth[-1] - worth[0]).item<double>(), 1e-9);
  }
}

TEST(InteractionsTest, SampledSetsRecoverAGameOfOrderTwo) {
  const int64_t players = 14;
  const auto generator = at::detail::createCPUGenerator(5);
  const at::Tensor singles = at::randn({players}, generator, at::kDouble);
  const at::Tensor upper = at::randn({players, players}, generator, at::kDouble).triu(1);
  const SetWorth play = [&](const at::Tensor& sets) {
    return at::mv(sets, singles) + (sets.matmul(upper) * sets).sum(1) - 1;
  };
  const FaithfulInteractions fit = faithful_interactions(play, players, 400, 6);
  EXPECT_FALSE(fit.exact);
  EXPECT_LE(fit.sets, 400);
  EXPECT_TRUE(at::allclose(fit.singles, singles, 0, 1e-8));
  EXPECT_TRUE(at::allclose(fit.pairs, upper + upper.t(), 0, 1e-8));
  EXPECT_NEAR(fit.explained, 1, 1e-9);
}

TEST(InteractionsTest, AndAndRedundantPairs) {
  const auto play = [](bool both) -> SetWorth {
    return
        [both](const at::Tensor& sets) { return both ? sets.prod(1) : sets.sum(1).clamp_max(1); };
  };
  for (const bool both : {true, false}) {
    const at::Tensor worth = worth_of_all_sets(play(both), 2);
    const double expected = both ? 1 : -1;
    EXPECT_NEAR(shapley_interactions(worth)[0][1].item<double>(), expected, 1e-12);
    EXPECT_NEAR(faithful_interactions(play(both), 2, 4, 0).pairs[0][1].item<double>(), expected,
                1e-9);
    EXPECT_TRUE(at::allclose(shapley_values(worth), at::full({2}, 0.5, at::kDouble)));
  }
}

TEST(InteractionsTest, WhatCannotBeFoundIsRefused) {
  const SetWorth play = [](const at::Tensor& sets) { return sets.sum(1); };
  EXPECT_THROW(sample_shapley(play, 3, 3, 0), std::invalid_argument);
  EXPECT_THROW(sample_shapley(play, 0, 4, 0), std::invalid_argument);
  EXPECT_THROW(faithful_interactions(play, 1, 10, 0), std::invalid_argument);
  EXPECT_THROW(faithful_interactions(play, 10, 20, 0), std::invalid_argument);
  EXPECT_THROW(worth_of_all_sets(play, 21), std::invalid_argument);
  EXPECT_THROW(shapley_interactions(at::zeros({3}, at::kDouble)), std::invalid_argument);
}

TEST(GaussLegendreTest, IntegratesPolynomialsExactly) {
  for (const int count : {1, 3, 16, 32}) {
    for (int power = 0; power < 2 * count; ++power) {
      double sum = 0;
      for (const QuadratureNode& node : gauss_legendre(count)) {
        sum += node.weight * std::pow(node.place, power);
      }
      EXPECT_NEAR(sum, 1.0 / (power + 1), 1e-13) << count << " nodes, power " << power;
    }
  }
}

}  // namespace
}  // namespace headkit
