#pragma once

#include <ATen/core/Tensor.h>

#include "core/json.h"

namespace headkit {

/// A tensor as {"dtype", "shape", "base64"}: its little-endian bytes, so that it comes back bit for
/// bit. Undefined = null. Dtypes: float64, float32, int8.
Json tensor_to_text(const char* operation, const at::Tensor& tensor);
/// std::invalid_argument on anything that `tensor_to_text` does not write, NaN and infinity
/// included.
at::Tensor tensor_from_text(const char* operation, const Json& value);

}  // namespace headkit
