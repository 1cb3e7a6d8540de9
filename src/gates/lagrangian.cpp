#include "headkit/gates/lagrangian.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "headkit/core/error.h"

namespace headkit {

at::Tensor lagrangian(const at::Tensor& deviation, const at::Tensor& multipliers, bool absolute) {
  HEADKIT_CHECK(multipliers.dim() == deviation.dim() + 1 && multipliers.size(0) == 2 &&
                    multipliers[0].sizes() == deviation.sizes(),
                "lagrangian", c10::str("two multipliers for each of ", deviation.sizes()), "shape ",
                multipliers.sizes());
  const at::Tensor linear = absolute ? deviation.abs() : deviation;
  return (multipliers[0] * linear + multipliers[1] * deviation.square()).sum();
}

double ramped(double from, double to, int64_t step, int64_t ramp_steps) {
  if (step >= ramp_steps) return to;
  return from + (to - from) * static_cast<double>(std::max<int64_t>(step, 0)) /
                    static_cast<double>(ramp_steps);
}

}  // namespace headkit
