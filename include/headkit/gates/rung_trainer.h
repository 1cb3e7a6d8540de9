#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "headkit/gates/rung.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// Settings of `RungTrainer`.
struct RungTrainerOptions {
  double learning_rate = 4e-5;  ///< of the model's weights, by AdamW; at its peak
  double weight_decay = 0.01;
  double max_norm = 1;  ///< clips the joint gradient; 0 = no clip
  /// The rate climbs linearly over so many steps; 0 = it starts at its peak.
  int64_t warmup_steps = 0;
  int64_t total_steps = 0;  ///< and then falls linearly, to 0 after so many; 0 = it stays
  /// Task loss of rungs that learn from labels too, times `task_weight`; null = none.
  const Objective* task = nullptr;
  double task_weight = 0.5;
  /// The last rung learns from the dense outputs alone, as the whole model on top of a ladder does.
  bool last_without_task = true;
};

/// How far training has come, beside the weights: what AdamW remembers of each.
struct RungTrainerState {
  int64_t steps = 0;
  std::vector<at::Tensor> mean, square;  ///< of the gradients; one for each weight
};

/// Trains the weights of a model so that some of its rungs say what the dense model says: one rung
/// is a static sub-network, several that share the weights a ladder. What goes on step by step, so
/// that a loop around it can draw rungs, order the data, or stop and go on later; `train_ladder` is
/// one such loop.
///
/// The model, the objectives and the weights are borrowed; weights change in place, in the mode
/// that the model has, nothing is stored in `Tensor::grad`.
class RungTrainer {
 public:
  /// Throws std::invalid_argument on options, rungs or a model that do not fit, or without weights
  /// that require gradients.
  RungTrainer(GatedModel& model, std::vector<Rung> rungs, const Objective& distillation,
              const RungTrainerOptions& options);
  ~RungTrainer();

  /// Runs these rungs, in this order, on one batch, each by itself, and takes one step of AdamW
  /// down the sum of their losses: mean `distillation` from `dense`, and the task where it counts.
  /// Returns the mean distillation loss of each. Throws std::out_of_range for a rung that is not
  /// there, std::runtime_error, before a weight changes, if a loss is not finite.
  std::vector<double> step(const Batch& batch, const at::Tensor& dense,
                           const std::vector<int64_t>& rungs);
  int64_t steps() const;
  /// The rate of the next step.
  double learning_rate() const;
  const std::vector<at::Tensor>& weights() const;

  /// A copy. With the weights as they are, a trainer that adopts it goes on bit for bit.
  RungTrainerState state() const;
  /// Throws std::invalid_argument for the state of other weights.
  void adopt(const RungTrainerState& state);

 private:
  struct Body;
  std::unique_ptr<Body> body_;
};

}  // namespace headkit
