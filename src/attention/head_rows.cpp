#include "attention/head_rows.h"

namespace headkit {

void HeadRows::fill(const WorkList& list, int64_t first, int64_t count) {
  place.assign(list.pairs(), -1);
  offset.assign(list.heads + 1, 0);
  samples.clear();
  for (int64_t head = 0; head < list.heads; ++head) {
    for (int64_t i = list.col_offset[head]; i < list.col_offset[head + 1]; ++i) {
      const int64_t sample = list.sample_index[i] - first;
      if (sample < 0 || sample >= count) continue;
      place[list.pair_of[i]] = static_cast<int64_t>(samples.size());
      samples.push_back(static_cast<int32_t>(sample));
    }
    offset[head + 1] = static_cast<int64_t>(samples.size());
  }
}

}  // namespace headkit
