#include "headkit/explain/faithfulness.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

namespace headkit {
namespace {

// m of a set: the sum of what its heads are worth, bent so that heads interact.
struct PlantedGame {
  explicit PlantedGame(int64_t heads, double bend, uint64_t seed = 1) : bend(bend) {
    at::manual_seed(seed);
    worth = at::randn({heads}, at::kDouble).abs() + 0.1;
    worth[0] = 6;
    worth[1] = 4;
  }
  double one(const std::vector<bool>& left) const {
    double sum = 0;
    for (size_t h = 0; h < left.size(); ++h) {
      if (left[h]) sum += worth[static_cast<int64_t>(h)].item<double>();
    }
    return sum + bend * std::sin(3 * sum);
  }
  at::Tensor operator()(const at::Tensor& sets) {
    calls += sets.size(0);
    at::Tensor values = at::empty({sets.size(0)}, at::kDouble);
    for (int64_t i = 0; i < sets.size(0); ++i) {
      std::vector<bool> left;
      for (int64_t h = 0; h < sets.size(1); ++h) left.push_back(sets[i][h].item<bool>());
      values[i] = one(left);
    }
    return values;
  }
  std::vector<int64_t> best_order() const {
    const at::Tensor order = std::get<1>(worth.sort(0, true));
    return {order.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>() + order.numel()};
  }
  at::Tensor worth;
  double bend;
  int64_t calls = 0;
};

// AOPC by its definition.
double plain_aopc(const PlantedGame& game, const std::vector<int64_t>& order,
                  const std::vector<int64_t>& counts, bool comprehensive) {
  const std::vector<bool> all(order.size(), true);
  double sum = 0;
  for (const int64_t k : counts) {
    std::vector<bool> left(order.size(), comprehensive);
    for (int64_t i = 0; i < k; ++i) left[static_cast<size_t>(order[i])] = !comprehensive;
    sum += game.one(all) - game.one(left);
  }
  return sum / static_cast<double>(counts.size());
}

TEST(Faithfulness, FollowsItsDefinitionsWithExactBounds) {
  PlantedGame game(5, 0.7);
  const std::vector<int64_t> order{3, 0, 4, 1, 2};
  const Faithfulness found =
      faithfulness(order, std::ref(game), {.grid = "all", .random_orders = 20});
  EXPECT_LE(game.calls, 32) << "a set was asked for twice";
  EXPECT_EQ(found.k, (std::vector<int64_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(found.bounds, "exact");
  // ceil of 1, 5, 10, 20, 50 % of 5
  const std::vector<std::vector<int64_t>> grids{{1, 1, 1, 1, 3}, {1, 2, 3, 4, 5}};
  for (const bool comprehensive : {true, false}) {
    const auto& all = comprehensive ? found.comprehensiveness_aopc : found.sufficiency_aopc;
    const auto& curve = comprehensive ? found.comprehensiveness : found.sufficiency;
    ASSERT_EQ(all.size(), 2u);
    EXPECT_EQ(all[0].grid, "eraser");
    for (int64_t k = 1; k <= 5; ++k) {
      EXPECT_NEAR(curve.values[static_cast<size_t>(k - 1)],
                  plain_aopc(game, order, {k}, comprehensive), 1e-12);
    }
    for (size_t g = 0; g < 2; ++g) {
      const Aopc& aopc = all[g];
      EXPECT_NEAR(aopc.value, plain_aopc(game, order, grids[g], comprehensive), 1e-12);
      const std::vector<int64_t> inverse(order.rbegin(), order.rend());
      EXPECT_NEAR(aopc.inverse, plain_aopc(game, inverse, grids[g], comprehensive), 1e-12);
      std::vector<int64_t> any{0, 1, 2, 3, 4};
      double lowest = INFINITY, highest = -INFINITY;
      do {
        const double value = plain_aopc(game, any, grids[g], comprehensive);
        lowest = std::min(lowest, value);
        highest = std::max(highest, value);
      } while (std::next_permutation(any.begin(), any.end()));
      EXPECT_NEAR(*aopc.lowest, lowest, 1e-12);
      EXPECT_NEAR(*aopc.highest, highest, 1e-12);
      EXPECT_NEAR(*aopc.normalised, (aopc.value - lowest) / (highest - lowest), 1e-12);
    }
  }
  const auto json = nlohmann::json::parse(found.to_json());
  EXPECT_EQ(json["comprehensiveness"]["random"]["lower"].size(), 5u);
  EXPECT_EQ(json["aopc"]["sufficiency"]["eraser"]["value"], found.sufficiency_aopc[0].value);
}

TEST(Faithfulness, ThePlantedOrderLiesAboveTheBandAndItsInverseBelow) {
  PlantedGame game(20, 0);
  const Faithfulness found = faithfulness(game.best_order(), std::ref(game), {.grid = "all"});
  for (size_t g = 0; g < 2; ++g) {
    const Aopc& comprehensive = found.comprehensiveness_aopc[g];
    EXPECT_TRUE(comprehensive.beats_random);
    EXPECT_LT(comprehensive.inverse, comprehensive.random_lower);
    EXPECT_TRUE(found.sufficiency_aopc[g].beats_random);
    EXPECT_FALSE(comprehensive.normalised);
  }
  EXPECT_EQ(found.bounds, "");
  std::vector<int64_t> worst = game.best_order();
  std::reverse(worst.begin(), worst.end());
  EXPECT_FALSE(faithfulness(worst, std::ref(game)).comprehensiveness_aopc[0].beats_random);
}

TEST(Faithfulness, FreshRandomOrdersFallIntoTheBandAsOftenAsItClaims) {
  PlantedGame game(12, 0.3);
  int64_t inside = 0, above = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    at::manual_seed(1000 + seed);
    const at::Tensor drawn = at::randperm(12, at::kLong);
    const std::vector<int64_t> order(drawn.const_data_ptr<int64_t>(),
                                     drawn.const_data_ptr<int64_t>() + 12);
    const Aopc aopc = faithfulness(order, std::ref(game), {.seed = seed}).comprehensiveness_aopc[0];
    inside += aopc.value >= aopc.random_lower && aopc.value <= aopc.random_upper;
    above += aopc.beats_random;
  }
  // 90 % of 60 is 54, standard deviation 2.3; the band's own ends vary too.
  EXPECT_GE(inside, 45);
  EXPECT_LT(inside, 60);
  EXPECT_LE(above, 10);
}

TEST(Faithfulness, ABeamBoundsWhatExactSearchFinds) {
  PlantedGame game(9, 0.9);
  const std::vector<int64_t> order = game.best_order();
  const Faithfulness exact = faithfulness(order, std::ref(game), {.exact_heads = 9});
  const Faithfulness beam =
      faithfulness(order, std::ref(game), {.beam_width = 6, .exact_heads = 8});
  EXPECT_EQ(beam.bounds, "beam");
  EXPECT_EQ(beam.beam_width, 6);
  for (size_t side = 0; side < 2; ++side) {
    const Aopc& a = side == 0 ? exact.comprehensiveness_aopc[0] : exact.sufficiency_aopc[0];
    const Aopc& b = side == 0 ? beam.comprehensiveness_aopc[0] : beam.sufficiency_aopc[0];
    EXPECT_GE(*b.lowest, *a.lowest - 1e-12);
    EXPECT_LE(*b.highest, *a.highest + 1e-12);
    EXPECT_NEAR(*b.highest, *a.highest, 0.15 * (*a.highest - *a.lowest));
    EXPECT_NEAR(*b.lowest, *a.lowest, 0.15 * (*a.highest - *a.lowest));
  }
}

TEST(Faithfulness, TakesOneHeadAndRefusesWhatDoesNotFit) {
  PlantedGame game(2, 0);
  const std::vector<int64_t> one{0};
  const Faithfulness found = faithfulness(one, std::ref(game));
  EXPECT_EQ(found.k, std::vector<int64_t>{1});
  EXPECT_FALSE(found.comprehensiveness_aopc[0].normalised) << "all orders are one";
  const std::vector<int64_t> twice{0, 0}, none;
  EXPECT_THROW(faithfulness(twice, std::ref(game)), std::invalid_argument);
  EXPECT_THROW(faithfulness(none, std::ref(game)), std::invalid_argument);
  EXPECT_THROW(faithfulness(one, std::ref(game), {.grid = "some"}), std::invalid_argument);
  EXPECT_THROW(faithfulness(one, std::ref(game), {.random_orders = 0}), std::invalid_argument);
  EXPECT_THROW(faithfulness(one, [](const at::Tensor& s) { return at::full({s.size(0)}, NAN); }),
               std::invalid_argument);
}

TEST(Sparsity, GiniAndTheHeadsOfNinetyPercent) {
  const std::vector<double> equal{1, -1, 1, 1}, one{0, 0, -3, 0}, none{0, 0},
      mixed{8, 0.5, -1, 0.5};
  EXPECT_NEAR(*gini(equal), 0, 1e-12);
  EXPECT_NEAR(*gini(one), 0.75, 1e-12);
  EXPECT_FALSE(gini(none));
  // Half the mean absolute difference over the mean.
  double differences = 0;
  for (const double a : mixed) {
    for (const double b : mixed) differences += std::abs(std::abs(a) - std::abs(b));
  }
  EXPECT_NEAR(*gini(mixed), differences / (2 * 16 * 2.5), 1e-12);
  EXPECT_EQ(heads_for_share(equal), 4);
  EXPECT_EQ(heads_for_share(mixed), 2);
  EXPECT_EQ(heads_for_share(one), 1);
  EXPECT_EQ(heads_for_share(none), 0);
  EXPECT_THROW(heads_for_share(one, 0), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
