#pragma once

#include <cstdint>
#include <vector>

#include "headkit/plan/work_list.h"

namespace headkit {

/// The pairs of a work list that lie in some samples, head by head: so lie their rows, and the
/// gradient of a head's weight is a product over a run of them.
struct HeadRows {
  std::vector<int64_t> place;    ///< of each pair of the list, -1 for other samples
  std::vector<int64_t> offset;   ///< [heads + 1] first place of each head
  std::vector<int32_t> samples;  ///< by place, counted from the first

  /// Those of samples [first, first + count).
  void fill(const WorkList& list, int64_t first, int64_t count);
  int64_t pairs() const { return static_cast<int64_t>(samples.size()); }
};

}  // namespace headkit
