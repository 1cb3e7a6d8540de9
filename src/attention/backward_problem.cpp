#include "attention/backward_problem.h"

#include <algorithm>

#include "kernels/dispatch.h"
#include "operators/float32.h"
#include "operators/rounding.h"

namespace headkit {
namespace {

bool asks_for_scores(const GradientMask& mask) {
  for (const Differentiable i : {kX, kKv, kK, kV, kQWeight, kKWeight, kVWeight, kQBias, kKBias,
                                 kVBias, kAttnBias, kQNormWeight, kKNormWeight}) {
    if (mask[i]) return true;
  }
  return false;
}

}  // namespace

BackwardProblem::BackwardProblem(const AttentionProblem& given, const SavedPairs& saved_pairs,
                                 const at::Tensor& grad_out, const GradientMask& mask)
    : table(kernels::kernel_table()),
      problem(given),
      saved(saved_pairs),
      pairs(given),
      list(pairs.list),
      kv(pairs.kv),
      x(in_float32(given.x)),
      source(given.kv.defined() ? in_float32(given.kv) : x),
      grad(in_float32(grad_out)),
      cosines(in_float32(given.q_transform.rotary_cos)),
      sines(in_float32(given.q_transform.rotary_sin)),
      q_norm(in_float32(given.q_transform.norm_weight)),
      k_norm(in_float32(given.k_transform.norm_weight)),
      batch(x.size(0)),
      length(x.size(1)),
      source_length(given.num_keys),
      width(x.size(2)),
      source_width(source.size(2)),
      heads(given.heads),
      kv_heads(given.kv_heads),
      head_dim(given.head_dim),
      panels(ceil_div(length, table.panel)),
      source_panels(ceil_div(source_length, table.panel)),
      row(round_up(head_dim, table.vector_length)),
      rotary_dim(cosines.defined() ? cosines.size(2) : 0),
      self(!given.keys_given() && !given.kv.defined()),
      of_scores(asks_for_scores(mask)),
      sample_of(kv.pairs()),
      pairs_of_kv(kv.pairs()) {
  if (given.keys_given()) {
    k = GivenRows(in_float32(given.k));
    v = GivenRows(in_float32(given.v));
  }
  for (int64_t b = 0; b < batch; ++b) {
    std::fill(sample_of.begin() + kv.row_offset[b], sample_of.begin() + kv.row_offset[b + 1], b);
    for (int64_t pair = list.row_offset[b]; pair < list.row_offset[b + 1]; ++pair) {
      pairs_of_kv[pairs.kv_entry(b, list.head_index[pair])].push_back(pair);
    }
  }
}

}  // namespace headkit
