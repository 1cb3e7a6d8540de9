#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "headkit/explain/word_alignment.h"

namespace headkit {

/// The longest distance in words that a baseline may point over.
inline constexpr int64_t kMaxArcOffset = 8;

/// How well one fixed distance finds the word that another depends on.
struct OffsetBaseline {
  std::string relation;
  int64_t offset = 0;   ///< in words, head minus dependent; 1 = the next word
  int64_t arcs = 0;     ///< that `accuracy` is over
  double accuracy = 0;  ///< share of arcs at this offset; NaN without arcs
};

/// The best fixed offset of every relation, chosen on the arcs of one part and scored on those of
/// another; the most frequent relation first. A subtyped relation (nsubj:pass) counts under its own
/// name and under the one before the colon. Among equals the shorter offset, then the positive one.
std::vector<OffsetBaseline> offset_baselines(const std::vector<SequenceSyntax>& chosen_on,
                                             const std::vector<SequenceSyntax>& scored_on);

}  // namespace headkit
