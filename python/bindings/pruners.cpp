#include "rooms.h"

namespace headkit::bindings {

void register_pruners(pybind11::module_& m) {}

}  // namespace headkit::bindings
