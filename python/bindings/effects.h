#pragma once

#include <torch/csrc/utils/pybind.h>

namespace headkit::bindings {

/// What heads contribute: part of the room explain.
void register_effects(pybind11::module_& m);

}  // namespace headkit::bindings
