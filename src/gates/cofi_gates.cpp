#include "headkit/gates/cofi_gates.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "core/json.h"
#include "gates/unit_groups.h"
#include "headkit/core/error.h"
#include "headkit/gates/lagrangian.h"

namespace headkit {
namespace {

constexpr auto kOperation = "cofi_gates";
constexpr double kStartDeviation = 0.01;

std::vector<UnitGroup> groups_of(const CofiSettings& settings) {
  std::vector<UnitGroup> groups;
  for (UnitGroup& group : unit_groups(settings.layout)) {
    const bool gated =
        group.name == "heads" ||
        (group.name == "attention_sublayers" && settings.attention_sublayers) ||
        (group.name == "neurons" && settings.neurons) ||
        (group.name == "feed_forward_sublayers" && settings.feed_forward_sublayers) ||
        (group.name == "hidden" && settings.hidden);
    if (gated) groups.push_back(std::move(group));
  }
  return groups;
}

// A sublayer is a group of its own when gates are hardened.
at::Tensor rows_of(const UnitGroup& group, const at::Tensor& log_alpha) {
  return group.by_layer || group.name == "hidden" ? log_alpha : log_alpha.unsqueeze(1);
}

}  // namespace

at::Tensor cofi_soft_value(const at::Tensor& log_alpha, const HardConcrete& shape) {
  return at::sigmoid(0.8 * log_alpha / shape.beta);
}

at::Tensor cofi_inference_mask(const at::Tensor& log_alpha, const HardConcrete& shape) {
  const at::Tensor values = log_alpha.detach();
  const at::Tensor zeros =
      hard_concrete_closed_probability(values, shape).sum(-1, /*keepdim=*/true).round();
  const at::Tensor order = at::argsort(values, /*stable=*/true, -1, /*descending=*/false);
  const at::Tensor place = at::argsort(order, /*stable=*/true, -1, /*descending=*/false);
  return at::where(place < zeros, at::zeros_like(values), cofi_soft_value(values, shape));
}

at::Tensor cofi_clamp(const at::Tensor& log_alpha) {
  return log_alpha.clamp(std::log(0.01), std::log(100.0));
}

CofiGates::CofiGates(CofiSettings settings) : settings_(std::move(settings)) {
  const HeadLayout& layout = settings_.layout;
  layout.check(kOperation);
  settings_.shape.check(kOperation);
  HEADKIT_CHECK(settings_.target_sparsity >= 0 && settings_.target_sparsity < 1, kOperation,
                "a target sparsity in [0, 1)", settings_.target_sparsity);
  HEADKIT_CHECK(layout.feed_forward > 0 || !(settings_.neurons || settings_.feed_forward_sublayers),
                kOperation, "a layout with neurons, for gates of feed-forward blocks", "none");
  HEADKIT_CHECK(settings_.matrices == 2 || settings_.matrices == 3, kOperation,
                "2 or 3 feed-forward matrices", settings_.matrices);
  HEADKIT_CHECK(settings_.ramp_steps >= 0 && std::isfinite(settings_.start), kOperation,
                "ramp_steps of at least 0 and a finite start", settings_.ramp_steps, " and ",
                settings_.start);
  const at::Generator generator = at::detail::createCPUGenerator(settings_.seed);
  for (const UnitGroup& group : groups_of(settings_)) {
    add_parameter(group.name, settings_.start +
                                  kStartDeviation * at::randn(group.shape, generator, at::kFloat));
  }
  add_parameter("multipliers", at::zeros({2}, at::kFloat), /*ascend=*/true);
}

GateSet CofiGates::sample(int64_t, int64_t, const at::Generator& generator) const {
  GateSet gates;
  for (const UnitGroup& group : groups_of(settings_)) {
    const at::Tensor& log_alpha = parameter(group.name);
    const at::Tensor uniform = at::rand(log_alpha.sizes(), generator, at::kDouble);
    gates.*group.gates = hard_concrete_sample(log_alpha, uniform, settings_.shape);
  }
  return gates;
}

GateSet CofiGates::soft(int64_t) const {
  GateSet gates;
  for (const UnitGroup& group : groups_of(settings_)) {
    gates.*group.gates = cofi_soft_value(parameter(group.name), settings_.shape);
  }
  return gates;
}

GateSet CofiGates::hard() const {
  GateSet gates;
  for (const UnitGroup& group : groups_of(settings_)) {
    const at::Tensor log_alpha = parameter(group.name).detach();
    gates.*group.gates =
        cofi_inference_mask(rows_of(group, log_alpha), settings_.shape).reshape(log_alpha.sizes());
  }
  return gates;
}

at::Tensor CofiGates::expected_sparsity() const {
  OpenUnits open;
  for (const UnitGroup& group : groups_of(settings_)) {
    open.*group.open = hard_concrete_open_probability(parameter(group.name), settings_.shape);
  }
  return 1 - expected_size(open, settings_.layout, settings_.matrices) /
                 full_size(settings_.layout, settings_.matrices);
}

at::Tensor CofiGates::penalty(int64_t step) const {
  const double target = ramped(0, settings_.target_sparsity, step, settings_.ramp_steps);
  return lagrangian(expected_sparsity() - target, parameter("multipliers"), settings_.absolute);
}

void CofiGates::after_step() {
  const c10::NoGradGuard no_grad;
  for (const UnitGroup& group : groups_of(settings_)) {
    at::Tensor log_alpha = parameter(group.name);
    log_alpha.copy_(cofi_clamp(log_alpha));
  }
}

std::string CofiGates::describe(int64_t step) const {
  const at::Tensor multipliers = parameter("multipliers").detach();
  Json json{{"target_sparsity", ramped(0, settings_.target_sparsity, step, settings_.ramp_steps)},
            {"expected_sparsity", expected_sparsity().item<double>()},
            {"multipliers", {multipliers[0].item<double>(), multipliers[1].item<double>()}}};
  const GateSet hard = this->hard();
  OpenUnits kept;
  for (const UnitGroup& group : groups_of(settings_)) {
    kept.*group.open = (hard.*group.gates != 0).to(at::kDouble);
    json[group.name] = {{"open", (kept.*group.open).sum().item<int64_t>()},
                        {"units", group.count()}};
  }
  json["hard_sparsity"] =
      1 - expected_size(kept, settings_.layout, settings_.matrices).item<double>() /
              full_size(settings_.layout, settings_.matrices);
  return json.dump();
}

}  // namespace headkit
