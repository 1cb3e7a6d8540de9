#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "attention/attention_call.h"
#include "attention/attention_problem.h"
#include "attention/cpu_pairs.h"
#include "attention/given_rows.h"
#include "attention/saved_pairs.h"
#include "kernels/kernel_table.h"

namespace headkit {

/// One backward on backend "cpu" as its stages see it: operands in float32, sizes, what is open.
struct BackwardProblem {
  BackwardProblem(const AttentionProblem& problem, const SavedPairs& saved, const at::Tensor& grad,
                  const GradientMask& mask);
  BackwardProblem(const BackwardProblem&) = delete;
  BackwardProblem& operator=(const BackwardProblem&) = delete;

  const kernels::KernelTable& table;
  const AttentionProblem& problem;
  const SavedPairs& saved;
  const CpuPairs pairs;
  const WorkList& list;  // pairs.list
  const WorkList& kv;    // pairs.kv
  const at::Tensor x, source, grad, cosines, sines, q_norm, k_norm;
  GivenRows k, v;  // if given
  const int64_t batch, length, source_length, width, source_width, heads, kv_heads, head_dim;
  const int64_t panels, source_panels;  // of tokens, of each sample
  const int64_t row;                    // floats from one row of a head to the next
  const int64_t rotary_dim;
  const bool self;       // keys and values are projected from x
  const bool of_scores;  // something is asked for that lies behind the scores or the values
  std::vector<int64_t> sample_of;                 // of each entry of kv
  std::vector<std::vector<int64_t>> pairs_of_kv;  // of each entry of kv, those that read it

  int64_t pairs_of(int64_t sample) const {
    return list.row_offset[sample + 1] - list.row_offset[sample];
  }
  int64_t kv_of(int64_t sample) const { return kv.row_offset[sample + 1] - kv.row_offset[sample]; }
  int64_t panel_floats() const { return head_dim * table.panel; }
};

}  // namespace headkit
