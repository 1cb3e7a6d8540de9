#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// |dL_b / dg| of single examples at the dense point, double, CPU.
struct GateGradients {
  at::Tensor heads;   ///< [B, L, H]
  at::Tensor blocks;  ///< [B, L, N] of blocks of 32 neurons, where asked for
};

/// Gradients for the embedded `state` of `batch`, with what closed heads and blocks would add
/// (undefined = nothing). `visit` sees the state before each of the layers `stops` (ascending),
/// with its place in `stops`.
GateGradients gate_gradients(GatedModel& model, const ModelState& state, const Batch& batch,
                             const Objective& objective, const at::Tensor& dropped_output,
                             const at::Tensor& dropped_blocks, bool blocks,
                             const std::vector<int64_t>& stops,
                             const std::function<void(size_t, const ModelState&)>& visit);

/// Throws std::invalid_argument for an objective whose gradients at the dense model are zero.
void check_has_gradient(const char* operation, const Objective& objective);

}  // namespace headkit
