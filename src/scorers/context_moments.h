#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "headkit/models/gated_model.h"

namespace headkit {

/// Calls `begin` with the number of examples of each batch, then `visit` for each of its layers
/// with heads: the heads that are there, their outputs before the output projection [B, T, h, dh]
/// and 1 for valid tokens [B, T]; double, CPU. Throws as for_each_run, and for data without tokens.
void for_each_context(
    const char* metric, GatedModel& model, const DataSource& data, const Progress& progress,
    const std::function<void(int64_t examples)>& begin,
    const std::function<void(int64_t layer, const std::vector<int64_t>& heads,
                             const at::Tensor& context, const at::Tensor& valid)>& visit);

/// W_O by the heads that are there, double, CPU, [h, D, dh].
at::Tensor output_slices(GatedModel& model, int64_t layer);

/// Moments of the channels of head outputs over the valid tokens of each example; double, CPU.
struct ContextMoments {
  at::Tensor tokens;      ///< [n, L]
  at::Tensor mean;        ///< [n, L, H, dh]; 0 for heads that are gone
  at::Tensor deviations;  ///< [n, L, H, dh]: sum of squared deviations from `mean`
};

ContextMoments context_moments(const char* metric, GatedModel& model, const DataSource& data,
                               const Progress& progress);

}  // namespace headkit
