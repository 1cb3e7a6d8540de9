#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace headkit {

/// Checks that `bound` is finite and > 0 and `risk` in (0, bound).
void check_risk(const char* operation, double risk, double bound);
/// Checks losses [samples, grid] in [0, bound] and an ascending grid, whose last value loses at
/// most `risk`, and that there are `needed` samples; `why` says where that number comes from.
void check_losses(const char* operation, const at::Tensor& losses, const at::Tensor& grid,
                  double risk, double bound, int64_t needed, const std::string& why);

}  // namespace headkit
