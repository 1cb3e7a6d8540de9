#pragma once

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Mean loss of the dense model minus mean loss with only this head open in its layer, the other
/// layers dense: 0 = the head does as well as the whole layer. `settings` holds "best": for each
/// layer the best head and by how much the loss rises if only that one stays; null for a layer
/// without heads. Cost as ablation, with fewer heads in each forward.
/// Source: Michel, Levy, Neubig 2019.
class AllButOneScorer final : public HeadScorer {
 public:
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;
};

}  // namespace headkit
