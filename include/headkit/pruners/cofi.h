#pragma once

#include "headkit/pruners/learned_pruning.h"

namespace headkit {

/// Settings of `prune_by_cofi`.
struct CofiOptions {
  /// `share.keep` is the share of the weights of attention and feed-forward blocks that stays.
  LearnedPruningOptions training = {};
  double ramp = 0.7;   ///< share of the steps over which the target sparsity grows from 0, [0, 1]
  double start = 2.5;  ///< mean of log_alpha at the start; published: 10, for long trainings
  bool sublayers = true;  ///< whole blocks too, where the model has gates of them
  bool neurons = true;    ///< neurons too, where the model has gates of them
  bool hidden = false;    ///< dimensions of the residual stream too
  bool absolute = false;  ///< |s - t| in the Lagrangian, against overshooting on small data
  /// Distils from the layers and outputs of the model itself, dense, instead of the objective;
  /// frozen weights only.
  bool distil = false;
};

/// CoFi: gates of heads, neurons and whole blocks at once, driven to a share of weights. What stays
/// keeps a soft value that removal folds into the weights. The expected share swings around its
/// target and the hard gates come near it: `details` say how near. Source: Xia, Zhong, Chen 2022.
/// Throws std::invalid_argument for a share that the gates of the model cannot reach.
StaticPruning prune_by_cofi(GatedModel& model, const DataSource& data, const Objective& objective,
                            const CofiOptions& options = {});

}  // namespace headkit
