#include "operators/backend.h"

#include <cstdlib>

#include "headkit/core/error.h"

namespace headkit {

BackendChoice choose_backend(const char* operation, const std::string& cpu_refusal) {
  const char* variable = std::getenv("HEADKIT_BACKEND");
  const std::string forced = variable == nullptr ? "" : variable;
  constexpr const char* kForced = "HEADKIT_BACKEND forces it";
  if (forced == "aten" || forced == "reference") return {forced, kForced};
  HEADKIT_CHECK_RUNTIME(forced != "cuda", operation, "a backend that can run this call",
                        "HEADKIT_BACKEND=cuda: this build has no CUDA kernels");
  HEADKIT_CHECK_RUNTIME(forced.empty() || forced == "cpu", operation,
                        "HEADKIT_BACKEND to be cpu, aten, reference or cuda", "\"", forced, "\"");
  if (cpu_refusal.empty()) {
    return {"cpu", forced.empty() ? "the CPU kernels can run this call" : kForced};
  }
  HEADKIT_CHECK_RUNTIME(forced.empty(), operation, "a backend that can run this call",
                        "HEADKIT_BACKEND=cpu: ", cpu_refusal);
  return {"aten", "no kernel fits: " + cpu_refusal};
}

}  // namespace headkit
