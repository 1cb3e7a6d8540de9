#pragma once

#include <pybind11/pybind11.h>

namespace headkit::bindings {

/// Treebanks and syntactic roles, a part of the room explain.
void register_syntax(pybind11::module_& m);

}  // namespace headkit::bindings
