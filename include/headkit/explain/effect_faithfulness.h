#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "headkit/explain/faithfulness.h"
#include "headkit/explain/head_effects.h"
#include "headkit/explain/output_metric.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// Settings of `effect_faithfulness`.
struct EffectFaithfulness {
  std::string by = "toggle";              ///< what orders heads: toggle, gate_gradient, direct
  const DataSource* reference = nullptr;  ///< for the ablations mean and resample
  int64_t draws = 8;                      ///< inputs that resample draws
  at::Tensor dropped_output = {};         ///< [L, H, D]: what heads add that the policy closed
  FaithfulnessOptions curves = {};        ///< metric and ablation are those of the effects
};

/// Curves over the heads that are on for each input, the largest supporting effect first, under the
/// metric, target and ablation that the effects name; one for each of `effects`, which are of the
/// examples of `batch` in order. An input with no head on, or with a head on that lacks the effect,
/// is refused. Cost: a run for each set of heads, some hundreds an input (FaithfulnessOptions).
/// Throws std::invalid_argument for effects that are not of the batch, or lack what orders them.
std::vector<Faithfulness> effect_faithfulness(GatedModel& model, const Batch& batch,
                                              const OutputMetric& metric,
                                              const std::vector<InputEffects>& effects,
                                              const EffectFaithfulness& options = {});

}  // namespace headkit
