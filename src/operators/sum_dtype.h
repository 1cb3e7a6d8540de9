#pragma once

#include <c10/core/ScalarType.h>

namespace headkit {

/// The dtype in which the composites keep sums over units, samples and dimensions.
inline at::ScalarType sum_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace headkit
