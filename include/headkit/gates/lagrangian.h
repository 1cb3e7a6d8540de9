#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace headkit {

/// l1 d + l2 d^2, summed: what forces the deviation d from a target to 0 when l1 and l2 ascend.
/// `deviation`: any shape S, floating point; `multipliers`: [2, S...]. With `absolute` l1 |d|,
/// which keeps small data from overshooting. Source: Wang, Wohlwend, Lei 2020; Xia, Zhong, Chen
/// 2022.
at::Tensor lagrangian(const at::Tensor& deviation, const at::Tensor& multipliers,
                      bool absolute = false);

/// Where a target stands that moves linearly from `from` to `to` over `ramp_steps`, then stays.
double ramped(double from, double to, int64_t step, int64_t ramp_steps);

}  // namespace headkit
