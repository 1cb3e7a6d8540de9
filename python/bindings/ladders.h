#pragma once

#include <torch/csrc/utils/pybind.h>

namespace headkit::bindings {

/// Ladders and what climbs them, for register_gates: after the base class of policies.
void register_ladders(pybind11::module_& m);

}  // namespace headkit::bindings
