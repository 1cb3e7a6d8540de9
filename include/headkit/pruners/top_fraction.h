#pragma once

#include <cstdint>
#include <vector>

#include "headkit/core/head_mask.h"
#include "headkit/core/head_scores.h"

namespace headkit {

/// How a share of heads becomes a whole number of heads that stay.
enum class KeepRounding {
  kNearest,  ///< half a head counts as one
  kUp,       ///< removes floor(share removed * heads): Michel's protocol for BERT
  kDown,     ///< removes ceil(share removed * heads): Michel's protocol for translation
};

/// How many heads stay, and where.
struct TopFractionOptions {
  double keep = 0.5;          ///< share of all original heads that stay, in [0, 1]
  bool per_layer = false;     ///< the same share in every layer instead of one global ranking
  int64_t min_per_layer = 0;  ///< the best heads of each layer that are never removed
  KeepRounding rounding = KeepRounding::kNearest;
  /// Heads that may stay, GatedModel::heads() of a model that lost some; undefined = all. Where
  /// fewer are left than the share asks for, all of them stay.
  HeadMask candidates = {};
};

/// Heads that stay of `total`: the share rounded to a whole number.
int64_t kept_heads(double keep, int64_t total, KeepRounding rounding = KeepRounding::kNearest);

/// All heads that may be removed, the first to go first: ascending score, ties from the highest
/// (layer, head) down. The best `min_per_layer` heads of each layer are not among them.
std::vector<HeadId> removal_order(const HeadScores& scores, int64_t min_per_layer = 0,
                                  const HeadMask& candidates = {});

/// Keeps the heads with the largest scores; ties go to the lower (layer, head). Source: Michel,
/// Levy, Neubig 2019. Throws std::invalid_argument if the share is outside [0, 1] or the floor does
/// not fit into it.
HeadMask prune_top_fraction(const HeadScores& scores, const TopFractionOptions& options = {});

}  // namespace headkit
