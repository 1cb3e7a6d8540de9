#include "headkit/attention/reference.h"

#include <ATen/ATen.h>

#include <limits>
#include <utility>

#include "attention/attention_call.h"
#include "attention/dropout.h"
#include "attention/key_positions.h"
#include "attention/kv_projection.h"
#include "attention/reference_scores.h"

namespace headkit {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// Bool, broadcastable to [B, H, T, S].
at::Tensor admissible(const AttentionProblem& problem) {
  const at::Tensor position = position_mask(problem, {0, problem.num_keys});
  at::Tensor allowed = position.defined() ? position.unsqueeze(0).unsqueeze(0)
                                          : at::ones({1, 1, problem.x.size(1), problem.num_keys},
                                                     problem.x.options().dtype(at::kBool));
  if (problem.key_padding_mask.defined()) {
    allowed = allowed & problem.key_padding_mask.unsqueeze(1).unsqueeze(1);
  }
  if (problem.attn_bias.defined()) allowed = allowed & (problem.attn_bias != kMinusInfinity);
  return allowed;
}

// [B, T, H, dh]
at::Tensor contexts(const AttentionProblem& problem) {
  const int64_t batch = problem.x.size(0), length = problem.x.size(1);
  if (problem.heads == 0) {
    return at::zeros({batch, length, 0, problem.head_dim}, problem.x.options());
  }
  const ReferenceScores scores = reference_scores(problem);
  at::Tensor probabilities = scores.probabilities();
  if (problem.dropout_p > 0.0) {
    const auto index = problem.x.options().dtype(at::kLong);
    probabilities =
        probabilities * dropout_factor(problem, at::arange(batch, index),
                                       at::arange(problem.heads, index), {0, problem.num_keys},
                                       probabilities.scalar_type());
  }
  return probabilities.matmul(scores.v).transpose(1, 2);
}

}  // namespace

at::Tensor ReferenceScores::probabilities() const {
  return scores.softmax(-1).masked_fill(dead, 0.0);
}

ReferenceScores reference_scores(const AttentionProblem& problem) {
  const int64_t batch = problem.x.size(0), length = problem.x.size(1);
  const AttentionWeights& w = problem.weights;
  at::Tensor q = problem.x.matmul(w.q.t());
  if (w.q_bias.defined()) q = q + w.q_bias;
  q = problem.q_transform.apply(
      q.view({batch, length, problem.heads, problem.head_dim}).transpose(1, 2));
  auto [k, v] =
      problem.keys_given()
          ? std::pair(problem.k, problem.v)
          : reference_keys_values(kv_problem(problem, make_dense_work_list(batch, problem.heads)));
  if (!problem.own_kv_heads()) {
    const at::Tensor kv_head =
        at::tensor(at::ArrayRef<int64_t>(problem.kv_head), problem.x.options().dtype(at::kLong));
    k = k.index_select(1, kv_head);
    v = v.index_select(1, kv_head);
  }
  at::Tensor scores = q.matmul(k.transpose(-2, -1)) * problem.scale;
  if (problem.attn_bias.defined()) scores = scores + problem.attn_bias;
  const at::Tensor allowed = admissible(problem);
  // A row of minus infinities alone would make NaN, in the gradient too.
  const at::Tensor dead = allowed.any(-1, true).logical_not();
  scores = scores.masked_fill(allowed.logical_not(), kMinusInfinity).masked_fill(dead, 0.0);
  return {scores, dead, v};
}

at::Tensor attention_reference(const AttentionProblem& problem) {
  const int64_t width = problem.x.size(2);
  at::Tensor head_output = contexts(problem);
  const auto dtype = head_output.scalar_type();
  at::Tensor y;
  if (problem.gate.defined()) {
    const at::Tensor gate = problem.gate.dim() == 3 ? problem.gate : problem.gate.unsqueeze(-2);
    head_output = (head_output * gate.unsqueeze(-1)).to(dtype);
    if (problem.dropped_output.defined()) {
      y = (1.0 - gate).to(dtype).matmul(problem.dropped_output);
    }
  }
  const at::Tensor attended =
      head_output.reshape({problem.x.size(0), problem.x.size(1), problem.heads * problem.head_dim})
          .matmul(problem.weights.o.t());
  y = y.defined() ? attended + y : attended;
  if (problem.weights.o_bias.defined()) y = y + problem.weights.o_bias;
  return y.view({problem.x.size(0), problem.x.size(1), width});
}

at::Tensor reference_attention(const at::Tensor& x, const AttentionWeights& weights,
                               int64_t num_heads, const AttentionInput& input) {
  return attention_reference(make_problem(make_call(x, weights, num_heads, input)));
}

at::Tensor head_contexts(const at::Tensor& x, const AttentionWeights& weights, int64_t num_heads,
                         const AttentionInput& input) {
  return contexts(make_problem(make_call(x, weights, num_heads, input))).contiguous();
}

}  // namespace headkit
