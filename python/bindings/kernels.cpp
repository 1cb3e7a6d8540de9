#include <headkit/core/system.h>

#include "rooms.h"

namespace py = pybind11;

namespace headkit::bindings {

void register_kernels(py::module_& m) {
  m.def("peak_flops", &peak_flops, py::arg("seconds") = 0.02,
        py::call_guard<py::gil_scoped_release>(), R"pbdoc(
Measure the ceiling of the CPU kernels.

Multiply-adds of float32 on registers alone, at the active instruction-set level, over the threads
that torch uses.

Args:
    seconds: how long each thread runs.
Returns:
    float: FLOP per second (a multiply-add counts 2).
Example:
    >>> headkit.peak_flops(0.001) > 0
    True
)pbdoc");
}

}  // namespace headkit::bindings
