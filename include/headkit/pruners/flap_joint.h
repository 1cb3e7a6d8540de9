#pragma once

#include <string>

#include "headkit/pruners/pruner.h"

namespace headkit {

/// Settings of `prune_flap_jointly`.
struct FlapJointOptions {
  double keep = 0.5;    ///< share of the original model's cost that may stay, in [0, 1]
  bool neurons = true;  ///< also of neurons, where the model has gates of them
  /// What a unit costs: parameters, as published, or macs.
  std::string cost = "parameters";
  double tokens = 0;  ///< length of a sample that MACs are counted at; 0 = the mean of the data
  /// Squares the channel scores of heads before they are standardised, as the released code does.
  bool square = false;
  /// What replaces the units that go: dense (their means in the dense model, as published), pruned
  /// (in the pruned model, as `compensate` of other methods) or none.
  std::string means = "dense";
  Progress progress = {};  ///< batches done
};

/// FLAP with adaptive structure over all layers and both kinds of block (An et al. 2024): the
/// fluctuation of every neuron, and of every head as the mean over its channels, standardised over
/// the layer; one order over all of them, in which units go, the least first, until what is left is
/// within the budget; means replace what goes. No label, no gradient. Cost: 3 forwards. The
/// released code stops nearest to the budget, on either side; this one never exceeds it.
/// Throws std::invalid_argument for a budget below what no unit can save, and for means in a
/// feed-forward block without an output bias, before any work.
StaticPruning prune_flap_jointly(GatedModel& model, const DataSource& data,
                                 const Objective& objective, const FlapJointOptions& options = {});

}  // namespace headkit
