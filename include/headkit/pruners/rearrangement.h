#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace headkit {

/// `count` units of a sublayer to close, so that ||sum of their gradients||^2 is small: `gram`
/// [n, n] holds the products of the gradients of the gates, for example a block of the Fisher
/// information. Starts with the units of least norm; each other unit, in ascending norm, is added,
/// and the member dropped whose removal leaves the least, which may be the one just added: the
/// objective never grows. Ascending. O(n^2). Throws std::invalid_argument for another shape or
/// count. Source: Kwon et al. 2022.
std::vector<int64_t> rearrange_closed(const at::Tensor& gram, int64_t count);

/// Sum of `gram` over all pairs of `closed`: the squared norm of the sum of their gradients.
double closed_objective(const at::Tensor& gram, const std::vector<int64_t>& closed);

}  // namespace headkit
