#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "headkit/core/head_scores.h"
#include "headkit/gates/ladder.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// What `make_ladder` builds rungs from.
struct LadderPlan {
  /// Heads by importance, or else `order`: heads in the order in which they go, first to go first.
  /// Heads that `order` does not name stay on every rung.
  HeadScores scores = {};
  std::vector<HeadId> order = {};
  /// Required: share of the heads that are there on each rung below the top, ascending, in [0, 1].
  std::vector<double> head_shares = {};
  /// Importance of neurons, [L, F]; a block of 32 counts with the sum of its neurons.
  at::Tensor neuron_scores = {};
  /// With `neuron_scores`: share of the blocks that are there, as `head_shares`. Empty = all run.
  std::vector<double> block_shares = {};
  int64_t min_heads_per_layer = 0;   ///< heads that each layer keeps on every rung, its best ones
  int64_t min_blocks_per_layer = 0;  ///< the same of blocks
  /// Layers at the bottom in which all rungs but the top are the lowest: those that a
  /// `Reactivation` runs before it decides.
  int64_t common_layers = 0;
  /// Where set, closed heads and blocks add their mean output, measured on these examples while
  /// the rung is closed: once without and once with what closed units below add.
  const DataSource* data = nullptr;
  Progress progress = {};  ///< rungs done
};

/// Nested rungs of a model by one order of its heads and one of its blocks of neurons, and on top
/// everything that is there. For rungs that are prefixes of the neurons, `sort_neurons` first. Cost
/// with `data`: two runs a rung for heads, two more for blocks.
/// Throws std::invalid_argument for shares that do not ascend or a floor that does not fit.
/// Source: nested sub-networks after Yu, Huang 2019 (slimmable networks); mean compensation per
/// head after An et al. 2024 (FLAP).
Ladder make_ladder(GatedModel& model, const LadderPlan& plan);

}  // namespace headkit
