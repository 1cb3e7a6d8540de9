#pragma once

#include <ATen/core/Tensor.h>

namespace headkit {

/// base + (features - reference) W, double [B, M], from double features [B, F], reference [F],
/// W [F, M] and base [M], all contiguous. A sum runs over the features in ascending order, in one
/// thread: a row depends on its own features alone, bit for bit.
at::Tensor affine_rows(const at::Tensor& features, const at::Tensor& reference,
                       const at::Tensor& weight, const at::Tensor& base);

}  // namespace headkit
