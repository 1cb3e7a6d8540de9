#include <headkit/core/system.h>

#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {

void register_kernels(py::module_& m) {
  m.def("peak_flops", &peak_flops, py::arg("dtype") = "float32", py::arg("seconds") = 0.02,
        py::call_guard<py::gil_scoped_release>(), R"pbdoc(
Measure the ceiling of the CPU kernels.

Multiply-adds on registers alone, at the active instruction-set level, over the threads that torch
uses.

Args:
    dtype: "float32", or "bfloat16": products of bfloat16 summed in float32, on a level that has them
        natively.
    seconds: how long each thread runs.
Returns:
    float: FLOP per second (a multiply-add counts 2).
Raises:
    ValueError: if the level does not multiply ``dtype`` natively.
Example:
    >>> headkit.peak_flops(seconds=0.001) > 0
    True
)pbdoc");
}

}  // namespace headkit::bindings
