#pragma once

#include "headkit/pruners/learned_pruning.h"

namespace headkit {

/// Settings of `prune_by_subset`.
struct SubsetOptions {
  LearnedPruningOptions training = {.learning_rate = 0.3};
  double first_temperature = 10;
  double last_temperature = 0.1;
  double cooldown = 0.75;  ///< share of the steps over which the temperature falls, in (0, 1]
  bool straight_through = false;
};

/// Differentiable subset pruning to an exact number of heads: pipelined (weights frozen, only the
/// gates train) or, with `weight_learning_rate` > 0, joint. Keeps the heads of largest w. Source:
/// Li, Cotterell, Sachan 2021.
StaticPruning prune_by_subset(GatedModel& model, const DataSource& data, const Objective& objective,
                              const SubsetOptions& options = {});

}  // namespace headkit
