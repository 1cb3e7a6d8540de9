#include "headkit/gates/fixed_target_gates.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/json.h"
#include "gates/unit_groups.h"
#include "headkit/core/error.h"
#include "headkit/gates/lagrangian.h"
#include "headkit/gates/subset_gates.h"

namespace headkit {
namespace {

constexpr auto kOperation = "fixed_target_gates";

struct Target {
  UnitGroup group;
  int64_t keep = 0;
  bool rows = false;  // the count is one of each layer

  int64_t units() const { return rows ? group.shape[1] : group.count(); }
};

std::optional<int64_t> count_of(const FixedTargetSettings& settings, const std::string& name) {
  if (name == "heads") return settings.heads;
  if (name == "attention_sublayers") return settings.attention_sublayers;
  if (name == "neurons") return settings.neurons;
  if (name == "feed_forward_sublayers") return settings.feed_forward_sublayers;
  return settings.hidden;
}

std::vector<Target> targets_of(const FixedTargetSettings& settings) {
  std::vector<Target> targets;
  for (const UnitGroup& group : unit_groups(settings.layout)) {
    if (const auto keep = count_of(settings, group.name)) {
      targets.push_back({group, *keep, settings.per_layer && group.by_layer});
    }
  }
  return targets;
}

std::string multipliers_of(const Target& target) { return target.group.name + "_multipliers"; }

}  // namespace

FixedTargetGates::FixedTargetGates(FixedTargetSettings settings) : settings_(std::move(settings)) {
  settings_.layout.check(kOperation);
  settings_.shape.check(kOperation);
  HEADKIT_CHECK(settings_.ramp_steps >= 0 && std::isfinite(settings_.start), kOperation,
                "ramp_steps of at least 0 and a finite start", settings_.ramp_steps, " and ",
                settings_.start);
  const std::vector<Target> targets = targets_of(settings_);
  HEADKIT_CHECK(!targets.empty(), kOperation, "a target count for some kind of unit", "none");
  for (const Target& target : targets) {
    HEADKIT_CHECK(
        target.units() > 0 && target.keep >= 0 && target.keep <= target.units(), kOperation,
        c10::str("from 0 to ", target.units(), " ", target.group.name, " to keep"), target.keep);
    add_parameter(target.group.name, at::full(target.group.shape, settings_.start, at::kFloat));
    const std::vector<int64_t> shape =
        target.rows ? std::vector<int64_t>{2, target.group.shape[0]} : std::vector<int64_t>{2};
    add_parameter(multipliers_of(target), at::zeros(shape, at::kFloat), /*ascend=*/true);
  }
}

GateSet FixedTargetGates::sample(int64_t, int64_t, const at::Generator& generator) const {
  GateSet gates;
  for (const Target& target : targets_of(settings_)) {
    const at::Tensor& log_alpha = parameter(target.group.name);
    const at::Tensor uniform = at::rand(log_alpha.sizes(), generator, at::kDouble);
    gates.*target.group.gates = hard_concrete_sample(log_alpha, uniform, settings_.shape);
  }
  return gates;
}

GateSet FixedTargetGates::soft(int64_t) const {
  GateSet gates;
  for (const Target& target : targets_of(settings_)) {
    gates.*target.group.gates =
        hard_concrete_test_gate(parameter(target.group.name), settings_.shape);
  }
  return gates;
}

GateSet FixedTargetGates::hard() const {
  GateSet gates;
  for (const Target& target : targets_of(settings_)) {
    const at::Tensor log_alpha = parameter(target.group.name).detach();
    std::vector<at::Tensor> rows;
    if (target.rows) {
      for (int64_t l = 0; l < log_alpha.size(0); ++l) {
        rows.push_back(hard_subset(log_alpha[l], target.keep));
      }
    }
    gates.*target.group.gates = target.rows ? at::stack(rows) : hard_subset(log_alpha, target.keep);
  }
  return gates;
}

at::Tensor FixedTargetGates::penalty(int64_t step) const {
  at::Tensor sum = at::zeros({}, at::kDouble);
  for (const Target& target : targets_of(settings_)) {
    const at::Tensor open =
        hard_concrete_open_probability(parameter(target.group.name), settings_.shape);
    const auto units = static_cast<double>(target.units());
    const double wanted =
        ramped(1, static_cast<double>(target.keep) / units, step, settings_.ramp_steps);
    const at::Tensor share = target.rows ? open.mean(1) : open.mean();
    sum = sum + lagrangian(share - wanted, parameter(multipliers_of(target)));
  }
  return sum;
}

std::string FixedTargetGates::describe(int64_t step) const {
  Json json = Json::object();
  for (const Target& target : targets_of(settings_)) {
    const at::Tensor log_alpha = parameter(target.group.name).detach();
    const OpenCounts open = count_open_gates(log_alpha, settings_.shape);
    const double wanted = ramped(static_cast<double>(target.units()),
                                 static_cast<double>(target.keep), step, settings_.ramp_steps) *
                          static_cast<double>(target.group.count() / target.units());
    json[target.group.name] = {
        {"target", wanted},
        {"expected_open",
         hard_concrete_open_probability(log_alpha, settings_.shape).sum().item<double>()},
        {"open_by_test_gate", open.test_gate},
        {"open_by_probability", open.probability},
        {"open_by_likelier_end", open.likelier},
        {"between", open.between}};
  }
  return json.dump();
}

}  // namespace headkit
