#include "headkit/gates/budget_controller.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "headkit/core/error.h"
#include "headkit/core/flops.h"
#include "headkit/gates/latency_model.h"

namespace headkit {
namespace {

constexpr auto kOperation = "budget_controller";
constexpr std::array<std::string_view, 4> kUnits{"heads", "flops", "milliseconds", "joules"};
constexpr double kProportional = 0.5, kIntegral = 0.2;

// Floor and grid of the calibration, start and gain by the cost at each grid value.
BudgetOptions steered(const Calibration& calibration, const std::string& unit, double target,
                      const std::vector<double>& cost) {
  HEADKIT_CHECK(target > 0 && std::isfinite(target), kOperation, "a finite target > 0", target);
  const std::vector<double>& grid = calibration.grid;
  BudgetOptions options;
  options.unit = unit;
  options.target = target;
  options.grid = grid;
  options.floor = calibration.lambda;
  const size_t last = grid.size() - 1;
  size_t place = 0;
  while (place < last && cost[place] < target) ++place;
  options.start = std::max(grid[place], calibration.lambda);
  // The steepest way between neighbours near the target: a knob that is thought too weak swings.
  double slope = last > 0 ? (cost[last] - cost[0]) / (grid[last] - grid[0]) : 0;
  for (size_t j = place > 2 ? place - 2 : 0; j < std::min(place + 2, last); ++j) {
    slope = std::max(slope, (cost[j + 1] - cost[j]) / (grid[j + 1] - grid[j]));
  }
  options.gain = slope > 0 ? slope / target : 1;
  return options;
}

}  // namespace

BudgetController::BudgetController(BudgetOptions options) : options_(std::move(options)) {
  BudgetOptions& o = options_;
  HEADKIT_CHECK(std::find(kUnits.begin(), kUnits.end(), o.unit) != kUnits.end(), kOperation,
                "a unit of heads, flops, milliseconds, joules", o.unit);
  HEADKIT_CHECK(o.target > 0 && std::isfinite(o.target), kOperation, "a finite target > 0",
                o.target);
  o.grid = checked_grid(kOperation, std::move(o.grid));
  HEADKIT_CHECK(o.floor >= 0 && o.floor <= 1, kOperation, "a floor in [0, 1]", o.floor);
  HEADKIT_CHECK(o.start >= 0 && o.start <= 1, kOperation, "a start in [0, 1]", o.start);
  HEADKIT_CHECK(o.gain > 0 && std::isfinite(o.gain), kOperation, "a finite gain > 0", o.gain);
  HEADKIT_CHECK(o.dead_band >= 0 && o.dead_band < 1, kOperation, "a dead band in [0, 1)",
                o.dead_band);
  HEADKIT_CHECK(o.smoothing > 0 && o.smoothing <= 1, kOperation, "a smoothing in (0, 1]",
                o.smoothing);
  if (o.proportional < 0) o.proportional = kProportional / o.gain;
  if (o.integral < 0) o.integral = kIntegral / o.gain;
  HEADKIT_CHECK(std::isfinite(o.proportional) && std::isfinite(o.integral), kOperation,
                "finite proportional and integral gains",
                c10::str(o.proportional, " and ", o.integral));
  // The floor itself must be a value that may be applied.
  o.floor = *std::lower_bound(o.grid.begin(), o.grid.end(), o.floor);
  state_.continuous = std::max(o.start, o.floor);
  state_.lambda = applied();
}

double BudgetController::applied() const {
  return *std::lower_bound(options_.grid.begin(), options_.grid.end(), state_.continuous);
}

double BudgetController::lambda() const {
  const std::lock_guard lock(mutex_);
  return state_.lambda;
}

double BudgetController::observe(double measured) {
  HEADKIT_CHECK(measured >= 0 && std::isfinite(measured), kOperation,
                "a finite measurement of 0 or more", measured);
  const std::lock_guard lock(mutex_);
  state_.measured = state_.observations == 0
                        ? measured
                        : std::lerp(state_.measured, measured, options_.smoothing);
  ++state_.observations;
  double error = (options_.target - state_.measured) / options_.target;
  if (std::abs(error) <= options_.dead_band) error = 0;
  if (!state_.frozen) {
    const double step = options_.proportional * (error - error_before_) + options_.integral * error;
    state_.continuous = std::clamp(state_.continuous + step, options_.floor, 1.0);
    state_.lambda = applied();
  }
  error_before_ = error;
  state_.unmet = error < 0 && state_.lambda <= options_.floor;
  return state_.lambda;
}

void BudgetController::freeze(bool frozen) {
  const std::lock_guard lock(mutex_);
  state_.frozen = frozen;
}

BudgetState BudgetController::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

BudgetOptions budget_for(const Calibration& calibration, const std::string& unit, double target) {
  HEADKIT_CHECK(unit == "heads" || unit == "flops", kOperation,
                "a unit that calibration counts, heads or flops, without measured costs", unit);
  return steered(calibration, unit, target,
                 unit == "heads" ? calibration.mean_heads : calibration.mean_flops);
}

BudgetOptions budget_for(const Calibration& calibration, const std::string& unit, double target,
                         const MeasuredCosts& costs) {
  if (unit == "heads" || unit == "flops") return budget_for(calibration, unit, target);
  HEADKIT_CHECK(unit == "milliseconds" || unit == "joules", kOperation,
                "a unit of heads, flops, milliseconds, joules", unit);
  HEADKIT_CHECK(costs.tokens > 0 && std::isfinite(costs.tokens) && costs.batch >= 1, kOperation,
                "a mean length above 0 and batches of at least 1",
                c10::str(costs.tokens, " and ", costs.batch));
  HEADKIT_CHECK(unit == "milliseconds" || (costs.watts > 0 && std::isfinite(costs.watts)),
                kOperation, "the watts of a running model, for joules", costs.watts);
  costs.layout.check(kOperation);
  std::vector<double> cost;
  for (size_t j = 0; j < calibration.grid.size(); ++j) {
    const double heads = calibration.mean_heads[j];
    // What heads do not explain of the FLOPs, neurons do.
    const double neurons =
        std::max(0.0, calibration.mean_flops[j] -
                          unit_flops(costs.layout, {heads, heads, 0}, costs.tokens)) /
        unit_flops(costs.layout, {0, 0, 1}, costs.tokens);
    const double milliseconds =
        costs.latency.milliseconds(heads, neurons / static_cast<double>(kNeuronBlock),
                                   std::llround(costs.tokens), costs.batch) /
        static_cast<double>(costs.batch);
    cost.push_back(unit == "joules" ? milliseconds / 1e3 * costs.watts : milliseconds);
  }
  return steered(calibration, unit, target, cost);
}

}  // namespace headkit
