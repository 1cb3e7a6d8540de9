#include "rooms.h"

namespace headkit::bindings {

void register_explain(pybind11::module_& m) {}

}  // namespace headkit::bindings
