#include "headkit/gates/adjustable_policy.h"

#include "headkit/core/error.h"

namespace headkit {

std::vector<PolicyRun> AdjustablePolicy::sweep(GatedModel& model, const Batch& batch,
                                               const std::vector<double>& lambdas) const {
  std::vector<PolicyRun> runs;
  for (const double lambda : lambdas) runs.push_back(run_policy(model, batch, *at(lambda)));
  return runs;
}

void check_lambda(const char* operation, double lambda) {
  HEADKIT_CHECK(lambda >= 0 && lambda <= 1, operation, "a lambda in [0, 1]", lambda);
}

}  // namespace headkit
