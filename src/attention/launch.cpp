#include <stdexcept>

#include "attention/attention_problem.h"
#include "headkit/core/error.h"

namespace headkit {

at::Tensor attention_cpu(const AttentionProblem& problem) {
  throw std::runtime_error(
      error_message("gated_attention", "the CPU kernels", attention_cpu_refusal(problem)));
}

std::string attention_cpu_refusal(const AttentionProblem& problem) {
  return "the CPU kernels are not built";
}

void refresh_packed_weights() {}

}  // namespace headkit
