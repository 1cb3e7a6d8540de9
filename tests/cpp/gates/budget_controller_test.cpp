#include "headkit/gates/budget_controller.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <thread>

#include "headkit/gates/latency_model.h"

namespace headkit {
namespace {

std::vector<double> unit_grid(int64_t steps) {
  std::vector<double> grid;
  for (int64_t j = 0; j <= steps; ++j) grid.push_back(static_cast<double>(j) / steps);
  return grid;
}

// A plant whose mean cost bends with lambda and whose batches scatter by 5 %.
struct Plant {
  double scale = 1;
  std::mt19937_64 random;
  double mean(double lambda) const { return scale * (20 + 30 * lambda + 22 * lambda * lambda); }
  double measure(double lambda) {
    return mean(lambda) * (1 + 0.05 * std::normal_distribution<double>()(random));
  }
};

double true_mean(BudgetController& controller, Plant& plant, int64_t batches) {
  double sum = 0;
  for (int64_t i = 0; i < batches; ++i) {
    const double lambda = controller.lambda();
    EXPECT_GE(lambda, controller.options().floor);
    sum += plant.mean(lambda);
    controller.observe(plant.measure(lambda));
  }
  return sum / static_cast<double>(batches);
}

TEST(BudgetControllerTest, MeetsTheTargetWithinFiftyBatchesAndAfterADisturbance) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Plant plant{1, std::mt19937_64(seed)};
    const double target = 42;
    BudgetController controller({.target = target,
                                 .grid = unit_grid(32),
                                 .floor = 0.125,
                                 .start = seed % 2 == 0 ? 1.0 : 0.0,
                                 .gain = 52 / target});
    true_mean(controller, plant, 50);
    EXPECT_NEAR(true_mean(controller, plant, 30), target, 0.03 * target) << seed;
    plant.scale = 1.25;
    true_mean(controller, plant, 50);
    EXPECT_NEAR(true_mean(controller, plant, 30), target, 0.03 * target) << seed;
    EXPECT_FALSE(controller.state().unmet);
  }
}

TEST(BudgetControllerTest, PromiseWinsOverATargetBelowTheFloor) {
  Plant plant{1, std::mt19937_64(3)};
  BudgetController controller(
      {.target = 22, .grid = unit_grid(16), .floor = 0.55, .gain = 52.0 / 22});
  true_mean(controller, plant, 60);
  EXPECT_EQ(controller.lambda(), 0.5625);  // the floor, rounded up to the grid
  EXPECT_TRUE(controller.state().unmet);
  // No wind-up: as soon as there is room, lambda rises.
  plant.scale = 0.2;
  for (int64_t i = 0; i < 10; ++i) controller.observe(plant.measure(controller.lambda()));
  EXPECT_GT(controller.lambda(), 0.5625);
  EXPECT_FALSE(controller.state().unmet);
}

TEST(BudgetControllerTest, FollowsTheVelocityForm) {
  BudgetController controller({.target = 10,
                               .grid = unit_grid(8),
                               .start = 0.5,
                               .proportional = 0.25,
                               .integral = 0.125,
                               .dead_band = 0.05,
                               .smoothing = 0.5});
  double state = 0.5, mean = 0, before = 0;
  bool first = true;
  for (const double measured : {12.0, 14.0, 10.2, 3.0, 9.9, 10.1, 20.0, 0.0}) {
    mean = first ? measured : mean + 0.5 * (measured - mean);
    first = false;
    double error = (10 - mean) / 10;
    if (std::abs(error) <= 0.05) error = 0;
    state = std::min(1.0, std::max(0.0, state + 0.25 * (error - before) + 0.125 * error));
    before = error;
    EXPECT_EQ(controller.observe(measured), std::ceil(state * 8) / 8);
    EXPECT_NEAR(controller.state().continuous, state, 1e-12);
    EXPECT_NEAR(controller.state().measured, mean, 1e-12);
  }
}

TEST(BudgetControllerTest, FreezeKeepsLambda) {
  BudgetController controller({.target = 10, .start = 0.5});
  controller.freeze();
  for (int64_t i = 0; i < 20; ++i) EXPECT_EQ(controller.observe(30), 0.5);
  EXPECT_TRUE(controller.state().frozen);
  controller.freeze(false);
  controller.observe(30);
  EXPECT_LT(controller.lambda(), 0.5);
}

TEST(BudgetControllerTest, ServesManyThreads) {
  BudgetController controller({.target = 40, .floor = 0.25});
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&controller, t] {
      Plant plant{1, std::mt19937_64(t)};
      for (int64_t i = 0; i < 200; ++i) controller.observe(plant.measure(controller.lambda()));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(controller.state().observations, 800);
  EXPECT_GE(controller.lambda(), 0.25);
}

TEST(BudgetControllerTest, TakesGridFloorAndGainFromTheCalibration) {
  Calibration calibration;
  calibration.grid = {0, 0.25, 0.5, 0.75, 1};
  calibration.mean_heads = {20, 22, 30, 60, 72};
  calibration.mean_flops = {2, 2.2, 3, 6, 7.2};
  calibration.lambda = 0.25;
  const BudgetOptions options = budget_for(calibration, "heads", 40);
  EXPECT_EQ(options.floor, 0.25);
  EXPECT_EQ(options.start, 0.75);
  EXPECT_DOUBLE_EQ(options.gain, 120.0 / 40);
  EXPECT_EQ(budget_for(calibration, "heads", 10).start, 0.25);
  EXPECT_EQ(budget_for(calibration, "flops", 4).unit, "flops");
  EXPECT_THROW(budget_for(calibration, "joules", 4), std::invalid_argument);
}

// Times of the latency model were made up: with two layers, 2 * (heads + blocks - all blocks) + 1.
TEST(BudgetControllerTest, TakesTheGainOfTimeAndEnergyFromTheLatencyModel) {
  const nlohmann::json made{
      {"version", 1},
      {"key", "key"},
      {"layout", {{"layers", 2}, {"heads", 4}, {"feed_forward", 64}}},
      {"tokens", {10.0}},
      {"batches", {4.0}},
      {"measured", 1},
      {"milliseconds", {{{"heads", {3.0, 11.0}}, {"blocks", {1.0, 3.0}}, {"other", 1.0}}}}};
  const LatencyModel latency = LatencyModel::from_json(made.dump(), "key");
  const HeadLayout layout{2, 4, 3, 12, 64};
  Calibration calibration;
  calibration.grid = {0, 0.5, 1};
  calibration.lambda = 0;
  const std::vector<double> heads{2, 4, 8}, neurons{32, 96, 128};
  std::vector<double> expected;
  for (size_t j = 0; j < 3; ++j) {
    calibration.mean_heads.push_back(heads[j]);
    calibration.mean_flops.push_back(heads[j] * (8 * 10 * 12 * 3 + 4 * 100 * 3) +
                                     neurons[j] * 4 * 10 * 12);
    // A layer: 3 ms and 8 more with all heads; all its blocks 2 ms; four examples share it.
    const double layer = 3 + 8 * heads[j] / 8 - 2 * (1 - neurons[j] / 128);
    expected.push_back((1 + 2 * layer) / 4);
  }
  const MeasuredCosts costs{latency, layout, 10, 4, 50};
  const BudgetOptions time = budget_for(calibration, "milliseconds", 3, costs);
  EXPECT_EQ(time.unit, "milliseconds");
  const double slope = std::max({expected[2] - expected[0], 2 * (expected[1] - expected[0]),
                                 2 * (expected[2] - expected[1])});
  EXPECT_NEAR(time.gain, slope / 3, 1e-9);
  EXPECT_EQ(time.start, expected[1] >= 3 ? 0.5 : 1.0);
  const BudgetOptions energy = budget_for(calibration, "joules", 3 * 0.05, costs);
  EXPECT_NEAR(energy.gain, time.gain, 1e-9) << "50 W are 0.05 J in a millisecond";
  EXPECT_EQ(energy.start, time.start);
  EXPECT_EQ(budget_for(calibration, "heads", 4, costs).gain,
            budget_for(calibration, "heads", 4).gain);
  EXPECT_THROW(budget_for(calibration, "joules", 1, {latency, layout, 10, 4, 0}),
               std::invalid_argument);
  EXPECT_THROW(budget_for(calibration, "milliseconds", 1, {latency, layout, 0, 4}),
               std::invalid_argument);
  EXPECT_THROW(budget_for(calibration, "seconds", 1, costs), std::invalid_argument);
}

TEST(BudgetControllerTest, RefusesWhatItCannotSteer) {
  EXPECT_THROW(BudgetController({.unit = "seconds", .target = 1}), std::invalid_argument);
  EXPECT_THROW(BudgetController({.target = 0}), std::invalid_argument);
  EXPECT_THROW(BudgetController({.target = 1, .grid = {0, 0.5}}), std::invalid_argument);
  EXPECT_THROW(BudgetController({.target = 1, .floor = 1.5}), std::invalid_argument);
  EXPECT_THROW(BudgetController({.target = 1, .gain = 0}), std::invalid_argument);
  BudgetController controller({.target = 1});
  EXPECT_THROW(controller.observe(NAN), std::invalid_argument);
  EXPECT_EQ(controller.state().observations, 0);
}

}  // namespace
}  // namespace headkit
