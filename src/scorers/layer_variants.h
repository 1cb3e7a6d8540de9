#pragma once

#include <vector>

#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// Heads of one layer that close together.
struct LayerVariant {
  int64_t layer = 0;
  std::vector<int64_t> closed;
};

struct VariantLosses {
  at::Tensor open;    ///< [examples] double, CPU: with no head closed
  at::Tensor closed;  ///< [variants, examples] double, CPU
  at::Tensor flips;   ///< [variants] int64: predictions that change; undefined without labels
};

/// The losses of a batch under each of `variants`, which are in the order of their layers. Layer l
/// starts from its cached input, several variants share a forward, closed heads are skipped.
/// `dropped_output` [L, H, D]: what a closed head adds; undefined = nothing. Throws as
/// HeadScorer::score.
VariantLosses variant_losses(const char* metric, GatedModel& model, const Batch& batch,
                             const Objective& objective, const std::vector<LayerVariant>& variants,
                             const at::Tensor& dropped_output);

}  // namespace headkit
