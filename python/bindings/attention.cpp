#include "rooms.h"

namespace headkit::bindings {

void register_attention(pybind11::module_& m) {}

}  // namespace headkit::bindings
