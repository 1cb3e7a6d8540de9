#include "attention/output_start.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "operators/float32.h"

namespace headkit {

OutputStart::OutputStart(const AttentionProblem& problem, const CpuPairs& pairs)
    : bias_(in_float32(problem.weights.o_bias)),
      dropped_(in_float32(problem.dropped_output)),
      gate_(pairs.gate),
      width_(problem.x.size(2)),
      stride_((width_ + 15) / 16 * 16),
      rows_(problem.x.size(0) * stride_, 0.0f) {}

void OutputStart::write(int64_t sample) {
  float* row = rows_.data() + sample * stride_;
  if (bias_.defined()) std::copy_n(bias_.const_data_ptr<float>(), width_, row);
  if (!dropped_.defined()) return;
  const int64_t heads = gate_.size(1);
  const float* gate = gate_.const_data_ptr<float>() + sample * heads;
  for (int64_t head = 0; head < heads; ++head) {
    const float share = 1.0f - gate[head];
    if (share == 0.0f) continue;
    const float* dropped = dropped_.const_data_ptr<float>() + head * width_;
    for (int64_t d = 0; d < width_; ++d) row[d] += share * dropped[d];
  }
}

}  // namespace headkit
