#include <ATen/ATen.h>

#include <limits>

#include "attention/attention_problem.h"
#include "attention/composite_backward.h"
#include "attention/dropout.h"
#include "attention/kv_projection.h"
#include "attention/pair_block.h"

namespace headkit {
namespace {

// [n, m, T, dh]
at::Tensor block_context(const AttentionProblem& problem, const PairBlock& block,
                         const BlockOperands& operands, const KeyRange& keys, bool causal) {
  if (problem.dropout_p > 0.0) {
    at::Tensor probabilities = block_probabilities(problem, operands);
    probabilities.mul_(dropout_factor(problem, block.samples.index(), block.heads.index(), keys,
                                      probabilities.scalar_type()));
    return group_matmul(probabilities, operands.v.to(probabilities.scalar_type()))
        .to(operands.v.scalar_type());
  }
  at::Tensor mask = operands.admissible;
  if (operands.bias.defined()) {
    mask = operands.bias;
    if (operands.admissible.defined()) {
      mask = at::where(operands.admissible, mask,
                       at::full({}, -std::numeric_limits<double>::infinity(), mask.options()));
    }
  }
  // The CPU kernel of PyTorch masks first and scales then: NaN for a causal call unless scale > 0.
  const bool positive = problem.scale > 0.0;
  const bool grouped = operands.k.size(1) != operands.q.size(1);
  return at::scaled_dot_product_attention(positive ? operands.q : operands.q * problem.scale,
                                          operands.k, operands.v,
                                          mask.defined() ? std::optional(mask) : std::nullopt, 0.0,
                                          causal, positive ? problem.scale : 1.0, grouped);
}

}  // namespace

at::Tensor gate_complement(const AttentionProblem& problem, at::ScalarType dtype) {
  const at::Tensor gate = problem.gate.dim() == 3 ? problem.gate : problem.gate.unsqueeze(-2);
  return (1.0 - gate).to(dtype);
}

at::Tensor attention_composite(const AttentionProblem& problem) {
  const int64_t batch = problem.x.size(0), length = problem.x.size(1), width = problem.x.size(2);
  const auto dtype = problem.x.scalar_type();
  const auto wide = sum_dtype(dtype);
  at::Tensor y = at::zeros({batch, length, width}, problem.x.options().dtype(wide));
  const KeyRange keys = reachable_keys(problem);
  if (y.numel() > 0 && problem.head_dim > 0 && problem.heads > 0 && keys.count > 0) {
    const WorkList open = open_pairs(problem);
    const auto [k, v] = problem.keys_given() ? std::pair(problem.k, problem.v)
                                             : project_keys_values(kv_problem(problem, open));
    const bool causal = is_plain_causal(problem, keys) && !problem.attn_bias.defined() &&
                        !problem.key_padding_mask.defined() && problem.dropout_p == 0.0;
    const at::Tensor position = causal ? at::Tensor() : position_mask(problem, keys);
    const bool dense_scores = problem.dropout_p > 0.0 || problem.attn_bias.defined() ||
                              (position.defined() && problem.key_padding_mask.defined());
    const int64_t max_scores = dense_scores ? kMaxScores : std::numeric_limits<int64_t>::max();
    for (const PairBlock& block : pair_blocks(problem, open, max_scores)) {
      const BlockOperands operands = block_operands(problem, block, k, v, keys, position);
      at::Tensor context = block_context(problem, block, operands, keys, causal);
      if (operands.gate.defined()) context = (context * operands.gate).to(dtype);
      const at::Tensor part = merge_heads(context).matmul(operands.o_weight.t());
      block.samples.add_to(y, 0, part.view({block.samples.count(), length, width}));
    }
  }
  if (problem.gate.defined() && problem.dropped_output.defined()) {
    y.add_(gate_complement(problem, wide).matmul(problem.dropped_output.to(wide)));
  }
  if (problem.weights.o_bias.defined()) y.add_(problem.weights.o_bias);
  return y.to(dtype);
}

}  // namespace headkit
