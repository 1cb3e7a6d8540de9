#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "headkit/core/gate_set.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// Settings of `mean_head_outputs`.
struct MeanOutputOptions {
  /// Gates at which the model runs, [L, H]: upstream removals shift what a head sees. Empty =
  /// dense.
  GateSet gates = {};
  /// Where set, decides the gates of each batch from its state before layer 0, instead of `gates`.
  std::function<GateSet(const ModelState& state)> decide = {};
  Progress progress = {};  ///< batches done
};

/// Mean output of every head after its part of the output projection, a_h (W_O^h)^T, over valid
/// tokens: the constant that best replaces a head that is dropped (`dropped_output`), float32
/// (float64 for a float64 model) on CPU, [L, H, D].
///
/// With gates it is the mean over the samples in which the head is closed (gate 0), because that
/// constant has the least squared error where it is used; a head that no sample closes gets the
/// mean over all. Heads that are physically gone get 0. Sums are kept in double. Throws
/// std::invalid_argument if the data hold no token or the gates do not fit. Source: mean
/// compensation after An et al. 2024 (FLAP), per head.
at::Tensor mean_head_outputs(GatedModel& model, const DataSource& data,
                             const MeanOutputOptions& options = {});

}  // namespace headkit
