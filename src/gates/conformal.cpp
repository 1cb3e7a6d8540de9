#include "headkit/gates/conformal.h"

#include <ATen/ATen.h>

#include <cmath>

#include "headkit/core/error.h"

namespace headkit {
namespace {
constexpr auto kOperation = "conformal";
}

int64_t conformal_samples_needed(const ConformalOptions& options) {
  HEADKIT_CHECK(options.bound > 0 && std::isfinite(options.bound), kOperation, "a finite bound > 0",
                options.bound);
  HEADKIT_CHECK(options.risk > 0 && options.risk < options.bound, kOperation,
                "a risk between 0 and the bound " + std::to_string(options.bound), options.risk);
  // 1/0.05 - 1 is a hair above 19 in double: the slack keeps exact cases exact.
  return static_cast<int64_t>(std::ceil(options.bound / options.risk - 1 - 1e-9));
}

ConformalResult conformal_risk_control(const at::Tensor& losses, const at::Tensor& grid,
                                       const ConformalOptions& options) {
  const int64_t needed = conformal_samples_needed(options);
  HEADKIT_CHECK(losses.dim() == 2 && losses.scalar_type() == at::kDouble && losses.is_cpu(),
                kOperation, "losses of shape [samples, grid], float64, CPU", losses.scalar_type(),
                " of shape ", losses.sizes());
  const int64_t samples = losses.size(0), points = losses.size(1);
  HEADKIT_CHECK(grid.dim() == 1 && grid.scalar_type() == at::kDouble && grid.is_cpu() &&
                    grid.size(0) == points && points > 0,
                kOperation, "a float64 grid of " + std::to_string(points) + " (> 0) values",
                grid.scalar_type(), " of shape ", grid.sizes());
  HEADKIT_CHECK((grid.slice(0, 1) > grid.slice(0, 0, -1)).all().item<bool>(), kOperation,
                "an ascending grid", grid);
  HEADKIT_CHECK(samples >= needed, kOperation,
                "at least " + std::to_string(needed) + " calibration samples for a risk of " +
                    std::to_string(options.risk) + " (n >= bound / risk - 1)",
                samples);
  HEADKIT_CHECK(((losses >= 0) & (losses <= options.bound)).all().item<bool>(), kOperation,
                "losses between 0 and the bound " + std::to_string(options.bound),
                losses.min().item<double>(), " to ", losses.max().item<double>());
  HEADKIT_CHECK(losses.select(1, points - 1).max().item<double>() <= options.risk, kOperation,
                "losses of at most the risk at the last grid value (dense)",
                losses.select(1, points - 1).max().item<double>());

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
