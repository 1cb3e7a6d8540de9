#include "gates/unit_groups.h"

namespace headkit {

int64_t UnitGroup::count() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

std::vector<UnitGroup> unit_groups(const HeadLayout& layout) {
  const int64_t layers = layout.layers;
  return {{"heads", &GateSet::heads, &OpenUnits::heads, {layers, layout.heads}, true},
          {"attention_sublayers",
           &GateSet::attention_sublayers,
           &OpenUnits::attention_sublayers,
           {layers}},
          {"neurons", &GateSet::neurons, &OpenUnits::neurons, {layers, layout.feed_forward}, true},
          {"feed_forward_sublayers",
           &GateSet::feed_forward_sublayers,
           &OpenUnits::feed_forward_sublayers,
           {layers}},
          {"hidden", &GateSet::hidden, &OpenUnits::hidden, {layout.model_dim}}};
}

}  // namespace headkit
