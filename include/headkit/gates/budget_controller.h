#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "headkit/gates/calibration.h"

namespace headkit {

class LatencyModel;

/// Settings of `BudgetController`.
struct BudgetOptions {
  std::string unit = "heads";  ///< of target and measurements: heads, flops, milliseconds, joules
  double target = 0;           ///< required: mean of a sample, > 0
  std::vector<double> grid{};  ///< lambdas that may be applied, ascending to 1; empty as in a trace
  double floor = 0;            ///< calibrated lambda: nothing below it is ever applied
  double start = 1;            ///< first lambda
  /// |d measurement / d lambda| / target, > 0: how strongly the knob works.
  double gain = 1;
  double proportional = -1;  ///< Kp; < 0 = 0.5 / gain
  double integral = -1;      ///< Ki; < 0 = 0.2 / gain
  double dead_band = 0.02;   ///< relative errors up to it move nothing, in [0, 1)
  double smoothing = 0.3;    ///< weight of the newest measurement in their moving mean, in (0, 1]
};

/// What a controller knows at one moment.
struct BudgetState {
  double lambda = 1;      ///< applied: a grid value, never below the floor
  double continuous = 1;  ///< behind it
  double measured = 0;    ///< moving mean; 0 before the first measurement
  int64_t observations = 0;
  bool unmet = false;   ///< the target would need a lambda below the floor: the promise wins
  bool frozen = false;  ///< lambda stays what it is
};

/// Steers lambda so that the mean cost meets a target: proportional-integral control in velocity
/// form, lambda += Kp (e - e_before) + Ki e with e = (target - measured) / target. Lambda is kept
/// continuous, clamped to [floor, 1] (so nothing winds up), and applied rounded up to the grid: by
/// the clamp rule of conformal risk control no value it takes breaks the calibrated promise.
///
/// One object serves many threads. Within a batch lambda must not change: ask once for each batch.
class BudgetController {
 public:
  /// Throws std::invalid_argument on options out of range; for a floor above 1 or below the grid.
  explicit BudgetController(BudgetOptions options);

  const BudgetOptions& options() const { return options_; }
  double lambda() const;
  /// Mean cost of a sample of a finished batch, in `unit`; finite and >= 0. Returns the lambda of
  /// the next batch.
  double observe(double measured);
  /// Keeps lambda, for runs that must be repeatable, or lets it go again.
  void freeze(bool frozen = true);
  BudgetState state() const;

 private:
  double applied() const;

  BudgetOptions options_;
  mutable std::mutex mutex_;
  BudgetState state_;
  double error_before_ = 0;
};

/// Options for a calibrated policy and a target in heads or FLOPs: its grid and floor, the lambda
/// where the calibration examples met the target, and the gain around it. Throws
/// std::invalid_argument for other units, which need measurements: below.
BudgetOptions budget_for(const Calibration& calibration, const std::string& unit, double target);

/// What turns heads and neurons that run into time and energy.
struct MeasuredCosts {
  const LatencyModel& latency;
  HeadLayout layout;  ///< of the model
  double tokens = 0;  ///< of an example on average, > 0
  int64_t batch = 1;  ///< examples that will be run together
  double watts = 0;   ///< while the model runs (EnergyMeter::watts), for joules
};
/// The same for milliseconds or joules of a sample (and the other two): what the calibration
/// examples ran at each lambda, heads and the neurons behind the rest of their FLOPs, is turned
/// into time by the latency model, and time into energy by the watts. Throws std::invalid_argument
/// for costs that do not fit.
BudgetOptions budget_for(const Calibration& calibration, const std::string& unit, double target,
                         const MeasuredCosts& costs);

}  // namespace headkit
