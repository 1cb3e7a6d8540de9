#include "headkit/gates/hard_concrete_gates.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {
constexpr auto kOperation = "hard_concrete_gates";
constexpr double kSmallestStart = 2.5;
}  // namespace

HardConcreteGates::HardConcreteGates(HardConcreteSettings settings)
    : settings_(std::move(settings)) {
  HEADKIT_CHECK(settings_.layers >= 1 && settings_.heads >= 1, kOperation,
                "at least one layer and one head", settings_.layers, " and ", settings_.heads);
  settings_.shape.check(kOperation);
  HEADKIT_CHECK(settings_.start >= kSmallestStart && std::isfinite(settings_.start), kOperation,
                "a start of at least 2.5, so that the model starts with open heads",
                settings_.start);
  set_penalty(settings_.penalty);
  add_parameter("log_alpha",
                at::full({settings_.layers, settings_.heads}, settings_.start, at::kFloat));
}

void HardConcreteGates::set_penalty(double penalty) {
  HEADKIT_CHECK(penalty >= 0 && std::isfinite(penalty), kOperation, "a penalty of at least 0",
                penalty);
  settings_.penalty = penalty;
}

GateSet HardConcreteGates::sample(int64_t, int64_t examples, const at::Generator& generator) const {
  const at::Tensor& log_alpha = parameter("log_alpha");
  std::vector<int64_t> shape = log_alpha.sizes().vec();
  if (settings_.per_example) shape.insert(shape.begin(), examples);
  const at::Tensor uniform = at::rand(shape, generator, at::kDouble);
  GateSet gates;
  gates.heads = hard_concrete_sample(log_alpha, uniform, settings_.shape);
  return gates;
}

GateSet HardConcreteGates::soft(int64_t) const {
  GateSet gates;
  gates.heads = hard_concrete_test_gate(parameter("log_alpha"), settings_.shape);
  return gates;
}

GateSet HardConcreteGates::hard() const {
  GateSet gates;
  const at::Tensor log_alpha = parameter("log_alpha").detach();
  gates.heads = (log_alpha > 0).to(log_alpha.dtype());
  return gates;
}

at::Tensor HardConcreteGates::penalty(int64_t) const {
  return settings_.penalty *
         hard_concrete_open_probability(parameter("log_alpha"), settings_.shape).sum();
}

std::string HardConcreteGates::describe(int64_t) const {
  const at::Tensor log_alpha = parameter("log_alpha").detach();
  const OpenCounts open = count_open_gates(log_alpha, settings_.shape);
  const at::Tensor expected = hard_concrete_open_probability(log_alpha, settings_.shape).sum();
  return Json{{"penalty", settings_.penalty},          {"expected_open", expected.item<double>()},
              {"open_by_test_gate", open.test_gate},   {"open_by_probability", open.probability},
              {"open_by_likelier_end", open.likelier}, {"between", open.between}}
      .dump();
}

}  // namespace headkit
