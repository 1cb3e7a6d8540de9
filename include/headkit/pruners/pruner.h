#pragma once

#include <functional>
#include <string>
#include <vector>

#include "headkit/core/head_mask.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"
#include "headkit/pruners/top_fraction.h"
#include "headkit/scorers/head_scorer.h"

namespace headkit {

struct PruneOptions {
  TopFractionOptions share;  ///< `candidates` is set from the model
  ScoreOptions score;
};

/// Decides which heads of `model` stay; the model is not changed (see remove_heads).
using PruneFunction =
    std::function<HeadMask(GatedModel& model, const DataSource& data, const Objective& objective,
                           const PruneOptions& options)>;

/// What the registry tells of a static pruning method.
struct PrunerInfo {
  std::string name;
  std::string definition;
  std::string source;
  std::string cost;   ///< in forwards and backwards over the data
  std::string needs;  ///< labels, none ...
  PruneFunction prune;
};

/// Every scorer as a one-shot method: score once, keep the top share.
const std::vector<PrunerInfo>& pruners();
/// Throws std::invalid_argument, naming the known ones.
const PrunerInfo& find_pruner(const std::string& name);

}  // namespace headkit
