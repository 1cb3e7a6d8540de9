#pragma once

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Leave-one-out: mean loss with the head's gate at 0 minus mean loss of the dense model. Layer l
/// is restarted from its cached input and closed heads are skipped, several heads in one forward;
/// the cost is about half of (heads + 1) forwards. Negative = the loss is lower without the head.
/// Where the batches hold labels, `settings` tells how many predictions each head flips.
/// Ignores interactions between heads: a yardstick, not an oracle.
/// Source: Michel, Levy, Neubig 2019.
class AblationScorer final : public HeadScorer {
 public:
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;
};

}  // namespace headkit
