#pragma once

#include <headkit/core/gate_set.h>
#include <headkit/core/head_mask.h>

#include <variant>

namespace headkit::bindings {

/// What Python callers give as gates.
using AnyGates = std::variant<GateSet, HeadMask, at::Tensor>;

inline GateSet gates_of(const AnyGates& gates) {
  if (const auto* set = std::get_if<GateSet>(&gates)) return *set;
  if (const auto* mask = std::get_if<HeadMask>(&gates)) return GateSet::from_mask(*mask);
  const at::Tensor& heads = std::get<at::Tensor>(gates);
  const bool wide = heads.scalar_type() == at::kDouble || heads.scalar_type() == at::kFloat;
  return {.heads = wide ? heads : heads.to(at::kFloat), .dropped_output = {}};
}

}  // namespace headkit::bindings
