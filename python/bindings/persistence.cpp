#include "rooms.h"

namespace headkit::bindings {

void register_persistence(pybind11::module_& m) {}

}  // namespace headkit::bindings
