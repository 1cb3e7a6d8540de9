#pragma once

#include <ATen/core/Tensor.h>

namespace headkit {

/// Mean of hidden states [B, T, D] over the valid tokens of each sample, double [B, D], CPU.
/// `attention_mask`: bool [B, T], true = token; undefined = all. A sample without tokens gets
/// `empty` [D] (undefined = zeros).
///
/// Sums are kept in double and run over the sample's own tokens in ascending order: the mean
/// depends on the sample alone, not on padding, batch or threads. Costs T * D additions a sample.
/// Throws std::invalid_argument on shapes that do not fit, and for NaN or infinity in a valid
/// token.
at::Tensor pooled_state(const char* operation, const at::Tensor& hidden,
                        const at::Tensor& attention_mask, const at::Tensor& empty = {});

}  // namespace headkit
