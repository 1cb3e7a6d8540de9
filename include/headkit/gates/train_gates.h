#pragma once

#include <vector>

#include "headkit/gates/layer_distillation.h"
#include "headkit/gates/learned_gates.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// Settings of `train_gates`.
struct TrainGatesOptions {
  int64_t steps = 0;           ///< required: optimiser steps, one a batch; the data are walked anew
  double learning_rate = 0.1;  ///< of the gates, which have their own Adam without weight decay
  double max_norm = 1;         ///< clips the gradient of the gates on its own; 0 = no clip
  double weight_learning_rate = 0;  ///< of the model's weights, by AdamW; 0 = frozen, no dropout
  double weight_decay = 0.01;       ///< of the weights
  double max_weight_norm = 1;       ///< clips the gradient of the weights on its own; 0 = no clip
  int64_t first_step = 0;           ///< where temperatures and targets start, to train on
  uint64_t seed = 0;                ///< of the gates' noise
  /// Gives the dense outputs for an objective that compares with them. Null = the model itself with
  /// all gates 1, which weights that train do not allow.
  GatedModel* teacher = nullptr;
  /// Replaces the objective by the distance to the teacher's layers and outputs; W trains too, by
  /// an Adam of its own with rate 1e-3. Null = none.
  const LayerDistillation* distillation = nullptr;
  Progress progress = {};  ///< steps done
};

/// How training went, by step.
struct GateTraining {
  std::vector<double> loss;     ///< mean over the examples, without the penalty
  std::vector<double> penalty;  ///< what the gates added
  int64_t steps() const { return static_cast<int64_t>(loss.size()); }
};

/// Trains gates, and the weights of `model` where asked for, on the mean loss of each batch plus
/// the gates' penalty; multipliers ascend.
///
/// Gates change in place; weights too, if `weight_learning_rate` > 0 (those that require gradients;
/// the model keeps its mode, dropout included). A head whose sampled gate is 0 is not computed
/// where that is exact (GateSet::skip), so hard concrete training costs less as heads close. What
/// throws, `progress` too, puts gates and weights back as they were. One forward and one backward a
/// step. Throws std::invalid_argument on options or data that do not fit, std::runtime_error if a
/// loss is not finite or the gates do not reach it.
GateTraining train_gates(GatedModel& model, LearnedGates& gates, const DataSource& data,
                         const Objective& objective, const TrainGatesOptions& options);

}  // namespace headkit
