#include "rooms.h"

namespace headkit::bindings {

void register_scorers(pybind11::module_& m) {}

}  // namespace headkit::bindings
