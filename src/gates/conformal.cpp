#include "headkit/gates/conformal.h"

#include <ATen/ATen.h>

#include <cmath>

#include "gates/risk_losses.h"

namespace headkit {
namespace {
constexpr auto kOperation = "conformal";
}

int64_t conformal_samples_needed(const ConformalOptions& options) {
  check_risk(kOperation, options.risk, options.bound);
  // 1/0.05 - 1 is a hair above 19 in double: the slack keeps exact cases exact.
  return static_cast<int64_t>(std::ceil(options.bound / options.risk - 1 - 1e-9));
}

ConformalResult conformal_risk_control(const at::Tensor& losses, const at::Tensor& grid,
                                       const ConformalOptions& options) {
  check_losses(kOperation, losses, grid, options.risk, options.bound,
               conformal_samples_needed(options), "n >= bound / risk - 1");
  const int64_t samples = losses.size(0), points = losses.size(1);
  const at::Tensor envelope = std::get<0>(losses.flip(1).cummax(1)).flip(1);
  const at::Tensor risk = envelope.mean(0);
  const double n = static_cast<double>(samples);
  ConformalResult result;
  result.samples = samples;
  for (int64_t j = 0; j < points; ++j) {
    result.index = j;
    result.lambda = grid[j].item<double>();
    result.empirical_risk = risk[j].item<double>();
    result.corrected_risk = (n * result.empirical_risk + options.bound) / (n + 1);
    if (result.corrected_risk <= options.risk + 1e-12) break;
  }
  return result;
}

}  // namespace headkit
