#include "headkit/gates/learned_gates.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "headkit/core/error.h"

namespace headkit {
namespace {

template <typename Parameters>
auto find_parameter(Parameters& parameters, const std::string& name) {
  const auto found = std::find_if(parameters.begin(), parameters.end(),
                                  [&](const GateParameter& each) { return each.name == name; });
  HEADKIT_CHECK(found != parameters.end(), "learned_gates", "the name of a parameter", "'", name,
                "'");
  return found;
}

}  // namespace

void LearnedGates::set_parameter(const std::string& name, at::Tensor value) {
  const auto found = find_parameter(parameters_, name);
  const at::Tensor& old = found->value;
  HEADKIT_CHECK(
      value.defined() && value.sizes() == old.sizes() &&
          (value.scalar_type() == at::kFloat || value.scalar_type() == at::kDouble),
      "learned_gates", c10::str(name, " in float32 or float64, of shape ", old.sizes()),
      value.defined() ? c10::str(value.scalar_type(), " of shape ", value.sizes()) : "none");
  found->value = std::move(value);
}

void LearnedGates::add_parameter(std::string name, const at::Tensor& value, bool ascend) {
  parameters_.push_back({std::move(name), value.detach().clone().set_requires_grad(true), ascend});
}

const at::Tensor& LearnedGates::parameter(const std::string& name) const {
  return find_parameter(parameters_, name)->value;
}

bool LearnedGates::has_parameter(const std::string& name) const {
  return std::any_of(parameters_.begin(), parameters_.end(),
                     [&](const GateParameter& each) { return each.name == name; });
}

}  // namespace headkit
