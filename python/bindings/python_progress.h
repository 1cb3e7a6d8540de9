#pragma once

#include <headkit/models/batch.h>
#include <pybind11/functional.h>
#include <torch/csrc/utils/pybind.h>

namespace headkit::bindings {

/// `progress` (may be empty) preceded by a look for Ctrl-C, which ends the work as
/// KeyboardInterrupt. May be called without the GIL.
inline Progress interruptible(Progress progress) {
  return [progress = std::move(progress)](int64_t done, int64_t total) {
    {
      pybind11::gil_scoped_acquire gil;
      if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    }
    if (progress) progress(done, total);
  };
}

}  // namespace headkit::bindings
