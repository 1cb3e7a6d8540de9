#include <ATen/ATen.h>

#include <cstdlib>
#include <string>

#include "attention/attention_problem.h"
#include "headkit/core/error.h"

namespace headkit {

BackendChoice choose_backend(const AttentionProblem& problem) {
  const char* variable = std::getenv("HEADKIT_BACKEND");
  const std::string forced = variable == nullptr ? "" : variable;
  constexpr const char* kForced = "HEADKIT_BACKEND forces it";
  if (forced == "aten" || forced == "reference") return {forced, kForced};
  HEADKIT_CHECK_RUNTIME(forced != "cuda", "gated_attention", "a backend that can run this call",
                        "HEADKIT_BACKEND=cuda: this build has no CUDA kernels");
  HEADKIT_CHECK_RUNTIME(forced.empty() || forced == "cpu", "gated_attention",
                        "HEADKIT_BACKEND to be cpu, aten, reference or cuda", "\"", forced, "\"");

  const std::string refusal = problem.x.is_cpu()
                                  ? attention_cpu_refusal(problem)
                                  : "x is on " + problem.x.device().str() + ", not on the CPU";
  if (refusal.empty()) {
    return {"cpu", forced.empty() ? "the CPU kernels can run this call" : kForced};
  }
  HEADKIT_CHECK_RUNTIME(forced.empty(), "gated_attention", "a backend that can run this call",
                        "HEADKIT_BACKEND=cpu: ", refusal);
  return {"aten", "no kernel fits: " + refusal};
}

}  // namespace headkit
