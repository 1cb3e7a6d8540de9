#pragma once

#include "headkit/pruners/pruner.h"

namespace headkit {

/// Settings of `prune_bottom_up`.
struct BottomUpOptions {
  double keep = 0.5;    ///< share of the original model's MACs that may stay, in [0, 1]
  bool neurons = true;  ///< also of neurons, where the model has gates of them
  double tokens = 0;    ///< length of a sample that costs are counted at; 0 = the mean of the data
  double prediction = 1;           ///< weight of half the Fisher information of a gate
  double representation = 2.5e-4;  ///< weight of the mean squared output of a unit
  /// Of the re-fit towards the weights that are there, in units of the mean squared input.
  double ridge = 1e-3;
  int64_t refit_examples = 0;  ///< examples that the re-fit looks at; 0 = all
  Progress progress = {};      ///< sublayers done
};

/// Prunes one sublayer after the other from the bottom, without training: scores all units that are
/// still to decide on the model as it is by then, finds the mask that meets the budget, applies it
/// to the current sublayer only, and re-fits the output projection (and its bias, where there is
/// one) by least squares to what the dense model has there, from inputs that have drifted. So each
/// sublayer corrects what those below it broke. Ends in `StaticPruning::refits`.
///
///     score of a unit = prediction * 1/2 mean_x G[x]^2 + representation * mean_t ||its output||^2
///
/// Cost: a forward and a backward for each layer, and about eight forwards. While it runs, the
/// weights of the model change, and are put back in the end, also where it throws: nothing else may
/// use the model meanwhile. Throws std::invalid_argument for a budget that units cannot reach, and
/// for layers that share weights.
/// Source: in the manner of Park, Choi, Kang 2024 (K-prune), with gates of heads instead of
/// channels and the given objective instead of the divergence from the dense model, whose gradient
/// at the first sublayer is zero.
StaticPruning prune_bottom_up(GatedModel& model, const DataSource& data, const Objective& objective,
                              const BottomUpOptions& options = {});

}  // namespace headkit
