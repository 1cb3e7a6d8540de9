#pragma once

#include <cstdint>
#include <vector>

#include "feed_forward/feed_forward_call.h"

namespace headkit {

/// Samples of one batch for which the same blocks run. Their tokens are rows of one product, so
/// that short samples fill whole panels.
struct SampleGroup {
  std::vector<int64_t> samples;  // ascending
  std::vector<int32_t> blocks;   // that run, ascending
  std::vector<float> scale;      // the gate of each; only where the groups have equal gates
};

/// Every sample once, groups in the order of their first samples. `equal_gates`: samples of a group
/// agree on the values of their gates too. Throws std::invalid_argument on NaN or infinite gates.
std::vector<SampleGroup> sample_groups(const FeedForwardProblem& problem, bool equal_gates);

}  // namespace headkit
