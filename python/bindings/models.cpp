#include "rooms.h"

namespace headkit::bindings {

void register_models(pybind11::module_& m) {}

}  // namespace headkit::bindings
