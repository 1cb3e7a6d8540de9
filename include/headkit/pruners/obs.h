#pragma once

#include "headkit/pruners/pruner.h"

namespace headkit {

/// Settings of `prune_obs`.
struct ObsOptions {
  double keep = 0.5;       ///< share of the original model's MACs that may stay, in [0, 1]
  bool neurons = true;     ///< also of neurons, where the model has gates of them
  double tokens = 0;       ///< length of a sample that costs are counted at; 0 = mean of the data
  double damping = 1e-3;   ///< of the inverse, in units of the mean squared input
  double ridge = 1e-3;     ///< of the re-fit, in the same units
  int64_t examples = 0;    ///< examples that are looked at; 0 = all
  Progress progress = {};  ///< sublayers done
};

/// Layer-wise optimal brain surgeon on heads and neurons: in every sublayer the unit goes whose
/// removal adds least to the squared error of its output, the others taking over what they can; of
/// all sublayers the one that loses least, as a share of what it puts out, for each MAC saved,
/// until the budget holds. Then output projections are re-fitted from the bottom, as
/// prune_bottom_up does. Looks at no labels and takes no gradient. Cost: about eight forwards, and
/// for each neuron that goes an update of an F x F matrix. Overwrites and puts back weights as
/// prune_bottom_up does; throws as it does. Source: after Kurtic, Frantar, Alistarh 2023 (ZipLM),
/// by MACs instead of latency and with a greedy choice between sublayers.
StaticPruning prune_obs(GatedModel& model, const DataSource& data, const Objective& objective,
                        const ObsOptions& options = {});

}  // namespace headkit
