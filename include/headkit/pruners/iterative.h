#pragma once

#include <string>

#include "headkit/pruners/pruner.h"

namespace headkit {

/// Settings of `prune_iteratively`.
struct IterativeOptions {
  std::string metric = "gate_gradient";  ///< a registered scorer
  int64_t step = 1;               ///< heads that go between two scorings; 1 = exact re-estimation
  TopFractionOptions share = {};  ///< how many stay
  ScoreOptions score = {};
  bool compensate = false;  ///< closed heads are replaced by their mean outputs, and scored so
};

/// Removes the `step` heads of least score, scores again with them closed, and so on: scores take
/// in what has already gone, KL and cosine still compare with the whole model. Closed heads are
/// never candidates again and cost nothing. Not uniformly better than scoring once. (heads that go
/// / step) times the cost of the metric. `details`: "order", the heads in the order in which they
/// went, and "scores", what they scored then. Source: Michel, Levy, Neubig 2019 (in exact form, one
/// head a step).
StaticPruning prune_iteratively(GatedModel& model, const DataSource& data,
                                const Objective& objective, const IterativeOptions& options = {});

}  // namespace headkit
