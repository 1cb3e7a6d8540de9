#pragma once

#include <string>

#include "headkit/core/backend.h"

namespace headkit {

/// The backend of a call of `operation`: what HEADKIT_BACKEND names, else "cpu" where its kernels
/// can run the call, else "aten". `cpu_refusal`: what the CPU kernels lack for it; empty if
/// nothing. Throws std::runtime_error if the variable names a backend that cannot run the call.
BackendChoice choose_backend(const char* operation, const std::string& cpu_refusal);

}  // namespace headkit
