#include "gates/risk_losses.h"

#include <ATen/ATen.h>

#include <cmath>

#include "headkit/core/error.h"

namespace headkit {

void check_risk(const char* operation, double risk, double bound) {
  HEADKIT_CHECK(bound > 0 && std::isfinite(bound), operation, "a finite bound > 0", bound);
  HEADKIT_CHECK(risk > 0 && risk < bound, operation,
                "a risk between 0 and the bound " + std::to_string(bound), risk);
}

void check_losses(const char* operation, const at::Tensor& losses, const at::Tensor& grid,
                  double risk, double bound, int64_t needed, const std::string& why) {
  HEADKIT_CHECK(losses.dim() == 2 && losses.scalar_type() == at::kDouble && losses.is_cpu(),
                operation, "losses of shape [samples, grid], float64, CPU", losses.scalar_type(),
                " of shape ", losses.sizes());
  const int64_t samples = losses.size(0), points = losses.size(1);
  HEADKIT_CHECK(grid.dim() == 1 && grid.scalar_type() == at::kDouble && grid.is_cpu() &&
                    grid.size(0) == points && points > 0,
                operation, "a float64 grid of " + std::to_string(points) + " (> 0) values",
                grid.scalar_type(), " of shape ", grid.sizes());
  HEADKIT_CHECK((grid.slice(0, 1) > grid.slice(0, 0, -1)).all().item<bool>(), operation,
                "an ascending grid", grid);
  HEADKIT_CHECK(samples >= needed, operation,
                "at least " + std::to_string(needed) + " calibration samples for a risk of " +
                    std::to_string(risk) + " (" + why + ")",
                samples);
  HEADKIT_CHECK(((losses >= 0) & (losses <= bound)).all().item<bool>(), operation,
                "losses between 0 and the bound " + std::to_string(bound),
                losses.min().item<double>(), " to ", losses.max().item<double>());
  HEADKIT_CHECK(losses.select(1, points - 1).max().item<double>() <= risk, operation,
                "losses of at most the risk at the last grid value (dense)",
                losses.select(1, points - 1).max().item<double>());
}

}  // namespace headkit
