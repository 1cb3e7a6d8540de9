#pragma once

#include <functional>
#include <vector>

#include "headkit/gates/ladder.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// Settings of `train_ladder`.
struct TrainLadderOptions {
  int64_t steps = 0;  ///< required: optimiser steps, one a batch; the data are walked anew
  double learning_rate = 4e-5;  ///< of the model's weights, by AdamW
  double weight_decay = 0.01;
  double max_norm = 1;  ///< clips the joint gradient; 0 = no clip
  /// Task loss of the rungs below the top one, times `task_weight`; null = none.
  const Objective* task = nullptr;
  double task_weight = 0.5;
  /// Outputs of the model that the rungs learn from, for a batch: a frozen copy's. Empty = the
  /// outputs of the model itself before training, without dropout, kept in memory.
  std::function<at::Tensor(const Batch& batch)> dense = {};
  bool compensate = true;  ///< measure what closed units add anew, where a rung has that
  uint64_t seed = 0;       ///< draws the random rung
  Progress progress = {};  ///< steps done
};

/// How training went, by step; means over the examples of a batch.
struct LadderTraining {
  std::vector<double> low;     ///< distillation loss of the lowest rung
  std::vector<double> top;     ///< of the top one
  std::vector<double> drawn;   ///< of the random one between; empty for two rungs
  std::vector<int64_t> rungs;  ///< which one that was
  Ladder ladder;               ///< the ladder with its compensation measured anew
};

/// Trains the rungs of a ladder together on the weights that they share: each step runs the lowest,
/// the top and a random rung between on the same batch; each learns from the outputs of the dense
/// model by `distillation` (kl_to_dense), those below the top from the task too, and one step of
/// AdamW follows on the sum of their gradients (rung_trainer.h, for loops of one's own). Source:
/// sandwich rule, Yu, Huang 2019.
///
/// The model changes in place, in the mode it has; what throws, `progress` too, puts it back. The
/// same seed gives the same result. Throws std::invalid_argument on options, ladder or data that do
/// not fit, std::runtime_error if a loss is not finite.
LadderTraining train_ladder(GatedModel& model, const Ladder& ladder, const DataSource& data,
                            const Objective& distillation, const TrainLadderOptions& options);

}  // namespace headkit
