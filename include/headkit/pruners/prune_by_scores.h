#pragma once

#include "headkit/pruners/pruner.h"

namespace headkit {

/// Keeps the heads of largest score, as the methods that score once do with their own scores.
/// `data` is for `compensate` alone; of `options.score` only `progress` counts. `details`:
/// "scores" and, where these tell it, "data_hash". Throws as prune_top_fraction.
StaticPruning prune_by_scores(GatedModel& model, const DataSource& data, const HeadScores& scores,
                              const PruneOptions& options = {});

}  // namespace headkit
