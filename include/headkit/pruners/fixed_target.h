#pragma once

#include "headkit/pruners/learned_pruning.h"

namespace headkit {

/// Settings of `prune_by_fixed_target`.
struct FixedTargetOptions {
  LearnedPruningOptions training = {};
  double ramp = 0.7;     ///< share of the steps over which the target falls from all heads, [0, 1]
  double start = 2.5;    ///< log_alpha at the start
  double beta = 2. / 3;  ///< temperature of the hard concrete
};

/// Hard concrete gates whose expected number is driven to the budget by a Lagrangian (one for each
/// layer, where the budget is by layer); keeps the heads of largest log_alpha, exactly as many as
/// the budget says. Source: Xia, Gao, Zeng, Chen 2024 (Sheared LLaMA), with heads alone.
StaticPruning prune_by_fixed_target(GatedModel& model, const DataSource& data,
                                    const Objective& objective,
                                    const FixedTargetOptions& options = {});

}  // namespace headkit
