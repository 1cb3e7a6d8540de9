#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/attention_problem.h"
#include "attention/cpu_pairs.h"

namespace headkit {

/// The first value of every row of the output of a sample: the bias and what closed heads add.
class OutputStart {
 public:
  OutputStart(const AttentionProblem& problem, const CpuPairs& pairs);

  /// Once for each sample, from any thread, before its `row` is read.
  void write(int64_t sample);
  /// [D], readable up to a full vector of any level.
  const float* row(int64_t sample) const { return rows_.data() + sample * stride_; }

 private:
  const at::Tensor bias_, dropped_, gate_;  // float32
  const int64_t width_, stride_;
  std::vector<float> rows_;
};

}  // namespace headkit
