#pragma once

#include <ATen/core/Tensor.h>

#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// How much each unit matters to single examples, double, CPU.
struct InputImportance {
  at::Tensor heads;   ///< [N, L, H]
  at::Tensor blocks;  ///< [N, L, blocks of 32 neurons]; undefined unless asked for
};

/// Settings of `input_importance`.
struct InputImportanceOptions {
  bool blocks = false;        ///< also of blocks of neurons, for a model that gates them
  at::Tensor dropped_output;  ///< [L, H, D], what closed heads would add; undefined = nothing
  at::Tensor dropped_blocks;  ///< [L, N, D], the same of blocks
  Progress progress = {};     ///< batches done
};

/// |dL_b / dg| of each example at the dense model. One forward and one backward. Throws
/// std::invalid_argument for an objective whose gradient there is zero, and for data without
/// examples. Source: Michel, Levy, Neubig 2019.
InputImportance input_importance(GatedModel& model, const DataSource& data,
                                 const Objective& objective,
                                 const InputImportanceOptions& options = {});

/// The units that each input needs where `mean_units` of them run on average: those of largest
/// importance relative to the input's own mean (of the logarithm), by one threshold for all inputs
/// and layers. `importance`: double >= 0 [N, L, U]; `present` bool [L, U] or undefined = all.
/// Returns bool [N, L, U]; ties of the threshold are needed.
at::Tensor needed_units(const at::Tensor& importance, double mean_units,
                        const at::Tensor& present = {});

/// What is settled before any input is seen.
struct StaticStage {
  at::Tensor fixed;  ///< int8 [L, U]: -1 = pruned, 1 = always on, 0 = contested
  at::Tensor need;   ///< double [L, U]: share of the inputs that need the unit
  int64_t pruned = 0, always_on = 0, contested = 0;
};

/// Settles the units that at most a share `settled_share` of the inputs needs (pruned), and those
/// that at least 1 - `settled_share` needs (always on); 0 = only where all inputs agree. `needed`:
/// bool [N, L, U], from `needed_units` or an oracle. Units that are not `present` are pruned. Where
/// no head is needed, or all are, nothing is left contested. Throws std::invalid_argument for no
/// input, a shape that does not fit or a share outside [0, 0.5).
StaticStage static_stage(const at::Tensor& needed, double settled_share = 0.005,
                         const at::Tensor& present = {});

}  // namespace headkit
