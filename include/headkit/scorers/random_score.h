#pragma once

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Uniform scores in (0, 1] from the seed, the same on every machine; looks at no data. The
/// baseline that every table needs.
class RandomScorer final : public HeadScorer {
 public:
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;
};

}  // namespace headkit
