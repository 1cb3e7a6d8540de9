#pragma once

#include <functional>

#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"
#include "scorers/score_sample.h"

namespace headkit {

struct AblationRun {
  bool all_but_one = false;        ///< closes the other heads of the layer instead of the head
  at::Tensor dropped_output = {};  ///< [L, H, D]: what a closed head adds; undefined = nothing
  /// Where set, gives it for each example, counted over all data; examples then run one by one.
  std::function<at::Tensor(int64_t example)> dropped_of_example = {};
  Progress progress = {};
};

struct AblationSample {
  ScoreSample deltas;  ///< loss with the change - loss without it, a row an example
  at::Tensor flips;    ///< [L, H] int64: predictions that change; undefined without labels
  int64_t examples = 0;
};

/// Runs the change of each head. Throws as HeadScorer::score, but not where all deltas are 0.
AblationSample ablation_sample(const char* metric, GatedModel& model, const DataSource& data,
                               const Objective& objective, const AblationRun& run);

/// `flips` as rows of a JSON array, where it is defined.
std::vector<std::vector<int64_t>> flip_rows(const at::Tensor& flips);

}  // namespace headkit
