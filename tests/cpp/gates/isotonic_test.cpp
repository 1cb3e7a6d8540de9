#include "headkit/gates/isotonic.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace headkit {
namespace {

at::Tensor doubles(const std::vector<double>& values) { return at::tensor(values, at::kDouble); }

struct Fit {
  std::vector<double> centres, values;
};

// The quadratic programme solved by trying every way to cut the ordered points into blocks.
Fit best_of_all_partitions(const std::vector<double>& z, const std::vector<double>& target,
                           const std::vector<double>& weight) {
  const size_t count = z.size();
  Fit best;
  double least = std::numeric_limits<double>::infinity();
  for (uint64_t cuts = 0; cuts < (uint64_t{1} << (count - 1)); ++cuts) {
    Fit fit;
    double error = 0;
    for (size_t first = 0, last; first < count; first = last) {
      last = first + 1;
      while (last < count && (cuts >> (last - 1) & 1) == 0) ++last;
      double total = 0, place = 0, mean = 0;
      for (size_t i = first; i < last; ++i) {
        total += weight[i];
        place += weight[i] * z[i];
        mean += weight[i] * target[i];
      }
      fit.centres.push_back(place / total);
      fit.values.push_back(mean / total);
      for (size_t i = first; i < last; ++i) {
        error += weight[i] * std::pow(target[i] - mean / total, 2);
      }
    }
    if (!std::is_sorted(fit.values.begin(), fit.values.end()) || error >= least) continue;
    least = error;
    best = fit;
  }
  return best;
}

TEST(Isotonic, IsTheBestOfAllPartitions) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < 200; ++trial) {
    const size_t count = 1 + trial % 9;
    std::vector<double> z(count), target(count), weight(count);
    for (size_t i = 0; i < count; ++i) {
      z[i] = normal(random);
      weight[i] = std::exp(normal(random));
    }
    std::sort(z.begin(), z.end());
    for (size_t i = 0; i < count; ++i) target[i] = z[i] + normal(random);
    const Fit expected = best_of_all_partitions(z, target, weight);
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    std::vector<double> z2, target2, weight2;
    for (const size_t i : order) {
      z2.push_back(z[i]);
      target2.push_back(target[i]);
      weight2.push_back(weight[i]);
    }
    const IsotonicMap map = IsotonicMap::fit(doubles(z2), doubles(target2), doubles(weight2));
    ASSERT_EQ(map.values().size(), expected.values.size());
    for (size_t k = 0; k < expected.values.size(); ++k) {
      EXPECT_NEAR(map.centres()[k], expected.centres[k], 1e-12);
      EXPECT_NEAR(map.values()[k], expected.values[k], 1e-12);
    }
  }
}

TEST(Isotonic, InterpolatesBetweenCentresAndIsConstantOutside) {
  const IsotonicMap map({0, 1, 3}, {-1, 0, 4});
  EXPECT_EQ(map(-5), -1);
  EXPECT_EQ(map(0), -1);
  EXPECT_DOUBLE_EQ(map(0.25), -0.75);
  EXPECT_EQ(map(1), 0);
  EXPECT_DOUBLE_EQ(map(2), 2);
  EXPECT_EQ(map(3), 4);
  EXPECT_EQ(map(1e300), 4);
  EXPECT_TRUE(std::isnan(map(NAN)));
}

TEST(Isotonic, TakesEqualPlacesAsOneObservation) {
  const IsotonicMap map =
      IsotonicMap::fit(doubles({1, 0, 1, 2}), doubles({4, 0, 2, 10}), doubles({1, 1, 3, 1}));
  EXPECT_EQ(map.centres(), (std::vector<double>{0, 1, 2}));
  EXPECT_EQ(map.values(), (std::vector<double>{0, 2.5, 10}));
}

TEST(Isotonic, RefusesWhatItCannotFit) {
  EXPECT_THROW(IsotonicMap::fit(doubles({}), doubles({})), std::invalid_argument);
  EXPECT_THROW(IsotonicMap::fit(doubles({1, 2}), doubles({1})), std::invalid_argument);
  EXPECT_THROW(IsotonicMap::fit(doubles({1, NAN}), doubles({1, 2})), std::invalid_argument);
  EXPECT_THROW(IsotonicMap::fit(doubles({1, 2}), doubles({1, 2}), doubles({1, 0})),
               std::invalid_argument);
  EXPECT_THROW(IsotonicMap({1, 1}, {0, 1}), std::invalid_argument);
  EXPECT_THROW(IsotonicMap({1, 2}, {1, 0}), std::invalid_argument);
  EXPECT_THROW(IsotonicMap({}, {}), std::invalid_argument);
}

at::Tensor random_logits(int64_t samples) {
  at::manual_seed(5);
  return at::randn({samples, 2, 3}, at::kDouble);
}

TEST(HeadIsotonicTest, IsDrawnTowardsItsLayerByItsSampleCount) {
  const at::Tensor z = random_logits(30);
  const at::Tensor target = z.exp() + at::randn({30, 2, 3}, at::kDouble);
  const HeadIsotonic maps = HeadIsotonic::fit(z, target, 10);
  const IsotonicMap own =
      IsotonicMap::fit(z.select(1, 1).select(1, 2).contiguous(), target.select(1, 1).select(1, 2));
  const IsotonicMap layer =
      IsotonicMap::fit(z.select(1, 1).flatten(), target.select(1, 1).flatten());
  for (double at = -3; at < 3; at += 0.37) {
    EXPECT_NEAR(maps.map(1, 2)(at), 0.75 * own(at) + 0.25 * layer(at), 1e-12);
  }
  EXPECT_EQ(HeadIsotonic::fit(z, target, 0).map(1, 2), own);
}

TEST(HeadIsotonicTest, OrderIsStrictAndAscendsWithImportance) {
  const HeadIsotonic maps(1, 4,
                          {IsotonicMap({0, 1}, {0, 1}), IsotonicMap({0, 1}, {0, 1}),
                           IsotonicMap({0, 1}, {0, 1}), IsotonicMap({0, 1}, {5, 6})});
  const at::Tensor z =
      at::tensor({3.0, 2.0, 2.0, -1.0, -1.0, NAN, 0.5, -2.0}, at::kDouble).reshape({2, 1, 4});
  // All of the first three are clamped to 1: the logit decides, then the place.
  EXPECT_TRUE(
      at::equal(maps.order(z), at::tensor({1, 2, 0, 3, 0, 2, 3, 1}, at::kLong).reshape({2, 4})));
}

TEST(HeadIsotonicTest, RoundTripsBitForBit) {
  const at::Tensor z = random_logits(20);
  const HeadIsotonic maps = HeadIsotonic::fit(z, z.square());
  const HeadIsotonic again = HeadIsotonic::from_json(maps.to_json());
  EXPECT_TRUE(at::equal(again(z), maps(z)));
  EXPECT_EQ(again.to_json(), maps.to_json());
  EXPECT_THROW(HeadIsotonic::from_json("{}"), std::invalid_argument);
  EXPECT_THROW(maps(z.to(at::kFloat)), std::invalid_argument);
  EXPECT_THROW(maps.map(2, 0), std::out_of_range);
}

}  // namespace
}  // namespace headkit
