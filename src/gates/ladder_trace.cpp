#include "headkit/gates/ladder_trace.h"

#include <ATen/ATen.h>

#include <cmath>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "ladder";

void check_trace(const LadderTrace& trace) {
  HEADKIT_CHECK(trace.confidence.defined() && trace.confidence.size(0) > 0, kOperation,
                "a trace of calibration examples", "none");
}

at::Tensor at_rung(const at::Tensor& values, const at::Tensor& reached) {
  return values.gather(1, reached.unsqueeze(1)).squeeze(1);
}

double budgeted_cost(const LadderTrace& trace, const LadderBudget& budget,
                     const std::vector<double>& powers, double lambda) {
  const at::Tensor reached =
      trace.reached(rung_thresholds(lambda, powers, trace.confidence.size(1) + 1));
  return budget.mean_heads ? trace.mean_heads(reached) : trace.flops_share(reached);
}

// The number between `low` (where `holds` is false) and `high` (where it is true) at which it
// turns.
template <typename Holds>
double turning_point(double low, double high, const Holds& holds) {
  for (;;) {
    const double middle = low + (high - low) / 2;
    if (!(middle > low && middle < high)) return high;
    (holds(middle) ? high : low) = middle;
  }
}

}  // namespace

at::Tensor LadderTrace::reached(const std::vector<double>& thresholds) const {
  check_trace(*this);
  const int64_t samples = confidence.size(0), boundaries = confidence.size(1);
  const auto given = static_cast<int64_t>(thresholds.size());
  HEADKIT_CHECK(given == 1 || given == boundaries, kOperation,
                c10::str("one threshold, or ", boundaries), given);
  at::Tensor reached = at::zeros({samples}, at::kLong);
  at::Tensor climbs = at::ones({samples}, at::kBool);
  for (int64_t r = 0; r < boundaries; ++r) {
    const double threshold = thresholds[static_cast<size_t>(given == 1 ? 0 : r)];
    // Written so that a NaN climbs.
    if (threshold < 1) {
      climbs = climbs.logical_and((confidence.select(1, r) >= threshold).logical_not());
    }
    reached += climbs.to(at::kLong);
  }
  return reached;
}

double LadderTrace::mean_heads(const at::Tensor& reached) const {
  return heads.index_select(0, reached).mean().item<double>();
}

double LadderTrace::flops_share(const at::Tensor& reached) const {
  return at_rung(flops, reached).sum().item<double>() / dense_flops.sum().item<double>();
}

std::vector<double> rung_thresholds(double lambda, const std::vector<double>& powers,
                                    int64_t rungs) {
  HEADKIT_CHECK(lambda >= 0 && lambda <= 1, kOperation, "a lambda in [0, 1]", lambda);
  const auto boundaries = static_cast<size_t>(rungs - 1);
  if (powers.empty()) return std::vector<double>(boundaries, lambda);
  HEADKIT_CHECK(powers.size() == boundaries, kOperation,
                c10::str(boundaries, " powers, one for each rung but the top"), powers.size());
  std::vector<double> thresholds;
  for (const double power : powers) {
    HEADKIT_CHECK(power >= 1 && std::isfinite(power), kOperation, "finite powers of at least 1",
                  power);
    thresholds.push_back(std::pow(lambda, power));
  }
  return thresholds;
}

double ladder_lambda(const LadderTrace& trace, const LadderBudget& budget,
                     const std::vector<double>& powers) {
  check_trace(trace);
  HEADKIT_CHECK(budget.mean_heads.has_value() != budget.flops_share.has_value(), kOperation,
                "mean_heads or flops_share",
                budget.mean_heads ? "both of them" : "neither of them");
  const auto cost = [&](double lambda) { return budgeted_cost(trace, budget, powers, lambda); };
  const double wanted = budget.mean_heads ? *budget.mean_heads : *budget.flops_share;
  const double least = cost(0), most = cost(1);
  // Rounding of a mean must not lose a reachable budget.
  const double limit = wanted + 1e-12 * std::abs(wanted);
  HEADKIT_CHECK(
      least <= limit && (!budget.mean_heads || wanted <= most), kOperation,
      c10::str(budget.mean_heads ? "mean_heads" : "flops_share", " from ", least, " to ", most),
      wanted);
  if (most <= limit) return 1;
  const double above = turning_point(0, 1, [&](double lambda) { return cost(lambda) > limit; });
  const double below = std::nextafter(above, 0.0);
  const double kept = cost(below);
  if (kept == least) return 0;
  const double first = turning_point(0, below, [&](double lambda) { return cost(lambda) >= kept; });
  return first + (below - first) / 2;
}

ConformalResult ladder_lambda_at_risk(const LadderTrace& trace, const LadderRisk& risk,
                                      const std::vector<double>& powers) {
  check_trace(trace);
  HEADKIT_CHECK(risk.steps >= 1, kOperation, "at least one step", risk.steps);
  HEADKIT_CHECK(risk.bound > 0, kOperation, "a bound above 0", risk.bound);
  at::Tensor by_rung;
  if (risk.loss == "label") {
    by_rung = trace.changed;
  } else if (risk.loss == "kl") {
    by_rung = trace.kl;
  } else {
    HEADKIT_CHECK(risk.loss == "task", kOperation, "a loss of label, kl or task", risk.loss);
    HEADKIT_CHECK(trace.loss.defined(), kOperation, "calibration examples with labels",
                  "some without");
    by_rung = trace.loss - trace.dense_loss.unsqueeze(1);
  }
  by_rung = by_rung.clamp(0, risk.bound);
  const at::Tensor grid = at::arange(risk.steps + 1, at::kDouble) / static_cast<double>(risk.steps);
  std::vector<at::Tensor> losses;
  for (int64_t j = 0; j <= risk.steps; ++j) {
    const at::Tensor reached = trace.reached(
        rung_thresholds(grid[j].item<double>(), powers, trace.confidence.size(1) + 1));
    losses.push_back(at_rung(by_rung, reached));
  }
  losses.back().zero_();  // lambda = 1 is dense
  return conformal_risk_control(at::stack(losses, 1), grid,
                                {.risk = risk.risk, .bound = risk.bound});
}

}  // namespace headkit
