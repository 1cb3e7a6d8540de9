#include "headkit/gates/subset_gates.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "subset_gates";
constexpr double kTiny = std::numeric_limits<double>::min();

// log(max(1 - exp(x), tiny)) of x <= 0. Each branch sees only arguments at which its value and
// gradient are finite, because a gradient passes through both sides of at::where.
at::Tensor log1mexp(const at::Tensor& x) {
  const at::Tensor near_zero = x > -std::log(2.0);
  const at::Tensor floor = at::full_like(x, std::log(kTiny));
  const at::Tensor small = -at::expm1(at::where(near_zero, x, at::full_like(x, -1)));
  const at::Tensor taken = small <= kTiny;
  const at::Tensor of_small =
      at::where(taken, floor, at::where(taken, at::ones_like(x), small).log());
  const at::Tensor of_large = at::log1p(-at::exp(at::where(near_zero, at::full_like(x, -1), x)));
  return at::where(near_zero, of_small, of_large);
}

void check_choice(const at::Tensor& scores, int64_t k) {
  HEADKIT_CHECK(
      scores.defined() && scores.numel() > 0 && scores.is_floating_point(), kOperation,
      "at least one score, floating point",
      scores.defined() ? c10::str(scores.scalar_type(), " of shape ", scores.sizes()) : "none");
  HEADKIT_CHECK(k >= 0 && k <= scores.numel(), kOperation,
                "a number to keep from 0 to " + std::to_string(scores.numel()), k);
}

}  // namespace

at::Tensor relaxed_subset(const at::Tensor& scores, int64_t k, double temperature) {
  check_choice(scores, k);
  HEADKIT_CHECK(scores.scalar_type() == at::kDouble, kOperation,
                "scores in float64, because lower precision gives NaN at low temperatures",
                scores.scalar_type());
  HEADKIT_CHECK(temperature > 0 && std::isfinite(temperature), kOperation, "a temperature above 0",
                temperature);
  at::Tensor r = scores.flatten();
  at::Tensor chosen = r * 0;
  for (int64_t j = 0; j < k; ++j) {
    const at::Tensor log_p = at::log_softmax(r / temperature, 0);
    chosen = chosen + log_p.exp();
    if (j + 1 < k) r = r + log1mexp(log_p);
  }
  return chosen.reshape(scores.sizes());
}

at::Tensor hard_subset(const at::Tensor& scores, int64_t k) {
  check_choice(scores, k);
  const at::Tensor values = scores.detach().flatten();
  HEADKIT_CHECK(!values.isnan().any().item<bool>(), kOperation, "scores without NaN", "NaN");
  const at::Tensor order = at::argsort(values, /*stable=*/true, 0, /*descending=*/true);
  return at::zeros_like(values).index_fill_(0, order.slice(0, 0, k), 1).reshape(scores.sizes());
}

double TemperatureSchedule::at(int64_t step) const {
  const double share =
      std::min(1.0, static_cast<double>(step) / static_cast<double>(cooldown_steps));
  return std::exp(std::log(first) - share * (std::log(first) - std::log(last)));
}

void TemperatureSchedule::check(const char* operation) const {
  HEADKIT_CHECK(first > 0 && last > 0 && std::isfinite(first + last) && cooldown_steps > 0,
                operation, "positive temperatures and cooldown steps", first, ", ", last, " and ",
                cooldown_steps);
}

SubsetGates::SubsetGates(SubsetSettings settings) : settings_(std::move(settings)) {
  HEADKIT_CHECK(settings_.layers >= 1 && settings_.heads >= 1, kOperation,
                "at least one layer and one head", settings_.layers, " and ", settings_.heads);
  const int64_t total = settings_.layers * settings_.heads;
  HEADKIT_CHECK(settings_.keep >= 0 && settings_.keep <= total, kOperation,
                c10::str("a number of heads to keep from 0 to ", total), settings_.keep);
  settings_.temperature.check(kOperation);
  add_parameter("w", at::zeros({settings_.layers, settings_.heads}, at::kDouble));
}

GateSet SubsetGates::gates(const at::Tensor& scores, int64_t step) const {
  GateSet gates;
  gates.skip = false;  // a gate of 0 has a gradient here
  if (settings_.straight_through) {
    gates.heads = hard_subset(scores, settings_.keep) + (scores - scores.detach());
    return gates;
  }
  gates.heads = relaxed_subset(scores, settings_.keep, settings_.temperature.at(step));
  if (settings_.clip) gates.heads = gates.heads.clamp_max(1);
  return gates;
}

GateSet SubsetGates::sample(int64_t step, int64_t, const at::Generator& generator) const {
  const at::Tensor w = parameter("w").to(at::kDouble);
  const at::Tensor uniform = at::rand(w.sizes(), generator, at::kDouble);
  const at::Tensor gumbel = -(-uniform.clamp_min(kTiny).log()).log();
  return gates(w + gumbel.to(w.device()), step);
}

GateSet SubsetGates::soft(int64_t step) const {
  return gates(parameter("w").to(at::kDouble), step);
}

GateSet SubsetGates::hard() const {
  GateSet gates;
  gates.heads = hard_subset(parameter("w"), settings_.keep);
  return gates;
}

at::Tensor SubsetGates::penalty(int64_t) const { return at::zeros({}, at::kDouble); }

std::string SubsetGates::describe(int64_t step) const {
  const at::Tensor relaxed = soft(step).heads.detach();
  return Json{{"keep", settings_.keep},
              {"temperature", settings_.temperature.at(step)},
              {"straight_through", settings_.straight_through},
              {"sum_of_soft_gates", relaxed.sum().item<double>()},
              {"largest_soft_gate", relaxed.max().item<double>()}}
      .dump();
}

}  // namespace headkit
