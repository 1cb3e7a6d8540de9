#pragma once

#include "headkit/core/head_mask.h"
#include "headkit/core/head_scores.h"

namespace headkit {

struct TopFractionOptions {
  double keep = 0.5;           ///< share of all heads that stay, in [0, 1]; rounded to whole heads
  bool per_layer = false;      ///< the same share in every layer instead of one global ranking
  int64_t min_per_layer = 0;   ///< the best heads of each layer that are never removed
};

/// Keeps the heads with the largest scores; ties go to the lower (layer, head). Source: Michel,
/// Levy, Neubig 2019. Throws std::invalid_argument if the floor does not fit into the share.
HeadMask prune_top_fraction(const HeadScores& scores, const TopFractionOptions& options = {});

}  // namespace headkit
