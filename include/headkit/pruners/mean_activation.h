#pragma once

#include <ATen/core/Tensor.h>

#include "headkit/core/gate_set.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/pruners/mean_output.h"

namespace headkit {

/// Mean activation of every neuron over valid tokens: the constant that best replaces one that is
/// dropped (StaticPruning::dropped_neurons), float32 (float64 for a float64 model) on CPU, [L, F].
/// Counts samples as mean_head_outputs does: those in which the neuron is closed, by its own gate
/// or that of its block, where there are any. Neurons that are physically gone get 0. One forward.
/// Throws std::invalid_argument for a model that does not show its neurons, data without tokens and
/// gates that do not fit. Source: An et al. 2024 (FLAP).
at::Tensor mean_neuron_activations(GatedModel& model, const DataSource& data,
                                   const MeanOutputOptions& options = {});

/// The same through the second linear map, summed over each block of 32 neurons: what best replaces
/// a block that is dropped (`dropped_blocks`), [L, N, D].
at::Tensor mean_block_outputs(GatedModel& model, const DataSource& data,
                              const MeanOutputOptions& options = {});

}  // namespace headkit
