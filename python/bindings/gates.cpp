#include "rooms.h"

namespace headkit::bindings {

void register_gates(pybind11::module_& m) {}

}  // namespace headkit::bindings
