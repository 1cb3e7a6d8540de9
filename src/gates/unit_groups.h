#pragma once

#include <string>
#include <vector>

#include "headkit/core/gate_set.h"
#include "headkit/core/head_layout.h"
#include "headkit/gates/expected_size.h"

namespace headkit {

/// Units of one kind, each with a gate.
struct UnitGroup {
  std::string name;            ///< as in GateSet
  at::Tensor GateSet::*gates;  ///< where their gates go
  at::Tensor OpenUnits::*open;
  std::vector<int64_t> shape;
  bool by_layer = false;  ///< shape [L, units of a layer]

  int64_t count() const;
};

/// Heads, attention sublayers, neurons, feed-forward sublayers, hidden dimensions of a model.
std::vector<UnitGroup> unit_groups(const HeadLayout& layout);

}  // namespace headkit
