#pragma once

#include <functional>
#include <string>
#include <vector>

#include "headkit/core/gate_set.h"
#include "headkit/core/head_mask.h"
#include "headkit/core/setting_info.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"
#include "headkit/pruners/top_fraction.h"
#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Another output projection of a block: of all units that are there before removal.
struct OutputRefit {
  int64_t layer = 0;
  bool feed_forward = false;  ///< of the feed-forward block instead of attention
  at::Tensor weight;          ///< [D, n]; columns of units that go are cut
  at::Tensor bias;            ///< [D]; undefined = the one that is there stays
};

/// What a static pruner decided; the model is not changed by it (see apply_pruning).
struct StaticPruning {
  HeadMask heads;  ///< heads that stay
  /// What goes or changes beyond the mask; undefined parts = nothing. `heads` scales heads that
  /// stay, `dropped_output` replaces those that go: removal folds both into the weights.
  GateSet gates = {};
  std::vector<OutputRefit> refits = {};  ///< weights that replace those there, then are cut
  /// What the activations of neurons that go are instead of 0, [L, F], by `gates.neurons`: removal
  /// folds (1 - gate) of it into the output biases. Undefined = nothing.
  at::Tensor dropped_neurons = {};
  /// JSON object: method, settings, the course of the search, data_hash of what was looked at.
  std::string details = "{}";

  /// Whether the mask says everything.
  bool heads_only() const {
    return gates.empty() && !gates.dropped_output.defined() && refits.empty();
  }
  /// The mask and the gates beyond it in one, as `remove_units` takes them; without refits and
  /// dropped_neurons these are the pruned model.
  GateSet all_gates() const;
};

/// Settings that all pruning methods share.
struct PruneOptions {
  TopFractionOptions share;     ///< `candidates` is set from the model
  ScoreOptions score;           ///< `progress` is told of the whole pruning
  bool compensate = false;      ///< mean outputs at the pruned model replace what goes
  std::string settings = "{}";  ///< JSON object: the method's own, by the names in PrunerInfo
};

using PruneFunction =
    std::function<StaticPruning(GatedModel& model, const DataSource& data,
                                const Objective& objective, const PruneOptions& options)>;

/// What the registry tells of a static pruning method.
struct PrunerInfo {
  std::string name;
  std::string definition;
  std::string source;
  std::string cost;   ///< in forwards and backwards over the data
  std::string needs;  ///< labels, none ...
  PruneFunction prune;
  std::string budget = "heads";            ///< what `keep` is a share of
  std::vector<SettingInfo> settings = {};  ///< those of scores are in ScoreOptions
};

/// Every scorer as a one-shot method (score once, keep the top share), then the methods that do
/// more.
const std::vector<PrunerInfo>& pruners();
/// Throws std::invalid_argument, naming the known ones.
const PrunerInfo& find_pruner(const std::string& name);

/// Decides by the method of this name. Throws std::invalid_argument for unknown methods and
/// settings, and for a budget that cannot be met, before any work.
StaticPruning prune(GatedModel& model, const DataSource& data, const Objective& objective,
                    const std::string& method, const PruneOptions& options = {});

/// Changes the weights of `model` as decided: puts refits in place, cuts what goes, folds what
/// replaces it. Whole or not at all. Throws std::invalid_argument where it does not fit: refits are
/// of the model that was pruned.
void apply_pruning(GatedModel& model, const StaticPruning& pruning);

}  // namespace headkit
