#pragma once

#include <vector>

#include "headkit/pruners/pruner.h"

namespace headkit {

/// Settings of `prune_kwon`.
struct KwonOptions {
  double keep = 0.5;    ///< share of the original model's cost that may stay, in [0, 1]
  bool neurons = true;  ///< also of neurons, where the model has gates of them
  double tokens = 0;    ///< length of a sample that costs are counted at; 0 = the mean of the data
  /// Where given, costs are latencies instead of MACs: of an attention block with 1, 2, .. H heads,
  /// and of a feed-forward block with evenly many neurons in each entry, the last with all
  /// (measure_latency). One unit of time throughout.
  std::vector<double> head_latency = {};
  std::vector<double> neuron_latency = {};
  double other_latency = 0;   ///< of a model beside these blocks: what no unit can save
  bool rearrange = true;      ///< swap units of a layer by the block Fisher information
  bool tune = true;           ///< scale what stays by ridge regression, layer by layer
  double ridge = 0.1;         ///< of the tuning, in units of the mean squared output of a unit
  double largest_scale = 10;  ///< a layer whose scales exceed this keeps 1; the next is tuned
  int64_t tune_examples = 0;  ///< examples that tuning looks at; 0 = all
  bool compensate = false;    ///< mean outputs of heads replace those that go
  Progress progress = {};     ///< steps done: batches, then layers
};

/// The retraining-free framework of Kwon et al. 2022: (1) Fisher information of the gates of heads
/// and neurons, from each example; (2) the mask of largest diagonal information within the budget;
/// (3) rearrangement in each layer; (4) scales of what stays, fitted to the dense model's outputs.
/// Cost: a forward and a backward, then about five forwards for tuning. The budget is never
/// exceeded: `details` tells "cost", "budget" and "dense". What differs from the released code:
/// gradients of examples instead of batches, no head at all is a choice, ridge around 1, and a
/// layer that cannot be tuned does not stop the others.
/// Throws std::invalid_argument for a budget below what no unit can save, before any work.
StaticPruning prune_kwon(GatedModel& model, const DataSource& data, const Objective& objective,
                         const KwonOptions& options = {});

}  // namespace headkit
