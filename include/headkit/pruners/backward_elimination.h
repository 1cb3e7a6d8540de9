#pragma once

#include "headkit/pruners/pruner.h"

namespace headkit {

/// Settings of `prune_by_elimination`.
struct BackwardEliminationOptions {
  TopFractionOptions share = {};  ///< how many stay
  int64_t step = 1;               ///< heads that go between two evaluations
  /// Heads tried in a step: those that did least harm when they were last tried; 0 = all.
  int64_t shortlist = 0;
  bool compensate = false;  ///< closed heads are replaced by their mean outputs
  Progress progress = {};   ///< heads that went
};

/// Removes, one after the other, the head without which the mean loss of what is left is lowest:
/// the loss of whole sets, so that interactions count. A step tries every head that is left;
/// variants share a forward, start from the cached input of their layer, and closed heads cost
/// nothing: about (heads left + 1) / 2 forwards of the model as it is then.
/// `details`: "order", and "loss" at the start and after each step.
/// Sources: greedy ablation after Michel, Levy, Neubig 2019; An et al. 2024 for the mean outputs.
StaticPruning prune_by_elimination(GatedModel& model, const DataSource& data,
                                   const Objective& objective,
                                   const BackwardEliminationOptions& options = {});

}  // namespace headkit
