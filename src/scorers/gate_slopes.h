#pragma once

#include <ATen/core/Tensor.h>

#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

struct GateSlopeOptions {
  bool by_token = false;           ///< heads: one gate for each token
  at::Tensor neurons = {};         ///< bool [L, F] of GatedModel::neurons: also those of neurons
  at::Tensor dropped_output = {};  ///< [L, H, D]: what a closed head adds instead of nothing
};

/// dL_x/dg of one batch, double, on CPU.
struct GateSlopes {
  at::Tensor heads;    ///< [B, L, H], by token [B, L, T, H]
  at::Tensor neurons;  ///< [B, L, F] or undefined
};

/// One forward from `state` (before layer 0) and one backward to the gates; no gradient of a
/// parameter is made. Throws std::invalid_argument for a loss of a wrong shape, std::runtime_error
/// for one that is not finite or does not depend on the gates.
GateSlopes gate_slopes(const char* metric, GatedModel& model, const ModelState& state,
                       const Objective& objective, const GateSlopeOptions& options);

/// `model.embed(batch)` without a graph.
ModelState embed_without_graph(GatedModel& model, const Batch& batch);

/// Throws std::invalid_argument for an objective whose minimum is the dense model.
void check_slope_exists(const char* metric, const Objective& objective);

}  // namespace headkit
