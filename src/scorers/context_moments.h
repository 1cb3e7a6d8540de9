#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "distributed/measured_walk.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// For each batch `begin` makes room for what is measured of so many examples; `visit` fills it
/// from each layer with heads: the heads that are there, their outputs before the output projection
/// [B, T, h, dh] and 1 for valid tokens [B, T]; double, CPU; `take` gets it. Returns the number of
/// examples. Throws as for_each_run, and for data without tokens.
int64_t for_each_context(
    const char* metric, GatedModel& model, const DataSource& data, const Progress& progress,
    const std::function<Measured(int64_t examples)>& begin,
    const std::function<void(int64_t layer, const std::vector<int64_t>& heads,
                             const at::Tensor& context, const at::Tensor& valid,
                             const Measured& room)>& visit,
    const std::function<void(const Measured& measured)>& take);

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
