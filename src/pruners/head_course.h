#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "headkit/core/head_mask.h"
#include "headkit/core/head_scores.h"
#include "headkit/pruners/top_fraction.h"

namespace headkit {

/// Heads that go one after the other until a share is left.
class HeadCourse {
 public:
  /// Starts with all heads of `present`. Throws std::invalid_argument for a share outside [0, 1],
  /// a floor that does not fit into it, or a step below 1.
  HeadCourse(const TopFractionOptions& share, const HeadMask& present, int64_t step);

  bool done() const { return open_.count() <= target_; }
  const HeadMask& open() const { return open_; }
  int64_t to_go() const { return open_.count() - target_; }
  const std::vector<HeadId>& order() const { return order_; }
  /// Heads that may go now: open, and not the last of a layer that the floor protects whole.
  std::vector<HeadId> candidates() const;
  /// Closes the next `step` heads of least score; returns them.
  std::vector<HeadId> close(const HeadScores& scores);

 private:
  HeadMask open_;
  int64_t step_, target_ = 0, floor_ = 0;
  std::vector<HeadId> order_;
};

Json heads_to_json(const std::vector<HeadId>& heads);

}  // namespace headkit
