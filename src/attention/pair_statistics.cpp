#include "headkit/attention/pair_statistics.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <limits>

#include "attention/attention_call.h"
#include "attention/cpu_pairs.h"
#include "attention/reference_scores.h"
#include "attention/saved_pairs.h"
#include "headkit/core/error.h"
#include "kernels/dispatch.h"
#include "operators/backend.h"
#include "operators/float32.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

constexpr const char* kName = "pair_statistics";

PairStatistics room(const AttentionProblem& problem) {
  const auto empty = [&] {
    return at::full({problem.x.size(0), problem.heads, problem.x.size(1)},
                    std::numeric_limits<double>::quiet_NaN(),
                    problem.x.options().dtype(sum_dtype(problem.x.scalar_type())));
  };
  return {empty(), empty(), empty(), empty()};
}

// W_O^T W_O of each head, [H, dh, dh]: |a W_O^T|^2 = a W_O^T W_O a^T.
at::Tensor output_grams(const AttentionProblem& problem) {
  const at::Tensor o = in_float32(problem.weights.o)
                           .view({problem.x.size(2), problem.heads, problem.head_dim})
                           .transpose(0, 1);
  return o.transpose(1, 2).matmul(o).contiguous();
}

// Open heads of a sample without keys are no pairs.
void fill_blind(const AttentionProblem& problem, const CpuPairs& pairs, PairStatistics& result) {
  for (int64_t b = 0; b < problem.x.size(0); ++b) {
    if (pairs.keys[b].count > 0) continue;
    const at::Tensor gate = pairs.gate[b].unsqueeze(-1);
    const at::Tensor runs = problem.skip ? gate.ne(0) : at::ones_like(gate, at::kBool);
    result.log_sum_exp[b].masked_fill_(runs, -std::numeric_limits<double>::infinity());
    for (at::Tensor* tensor :
         {&result.entropy, &result.largest_weight, &result.contribution_norm}) {
      (*tensor)[b].masked_fill_(runs, 0.0);
    }
  }
}

PairStatistics cpu_statistics(const AttentionProblem& problem) {
  PairStatistics result = room(problem);
  const at::Tensor memory =
      at::empty({SavedPairs::floats(problem)}, problem.x.options().dtype(at::kFloat));
  save_pairs(problem, memory);
  const SavedPairs saved(problem, memory);
  const CpuPairs pairs(problem);
  fill_blind(problem, pairs, result);
  const at::Tensor grams = output_grams(problem);
  const kernels::KernelTable& table = kernels::kernel_table();
  const int64_t length = problem.x.size(1), head_dim = problem.head_dim;
  int64_t most_keys = 0;
  for (const CpuPairs::Keys& keys : pairs.keys) most_keys = std::max(most_keys, keys.count);
  run_queue(
      queue_threads(), pairs.list.pairs(), table.statistics_scratch_floats(most_keys, head_dim),
      [&](int64_t pair, float* scratch) {
        const auto row =
            std::upper_bound(pairs.list.row_offset.begin(), pairs.list.row_offset.end(), pair);
        const int64_t sample = row - pairs.list.row_offset.begin() - 1;
        const int64_t head = pairs.list.head_index[pair];
        const int64_t place = (sample * problem.heads + head) * length;
        const auto of_pair = [&](const at::Tensor& tensor) {
          return tensor.mutable_data_ptr<float>() + place;
        };
        table.statistics({.q = saved.q(pair),
                          .k = saved.k(pairs.kv_entry(sample, head)),
                          .own_context = saved.context(pair),
                          .softmax = saved.softmax(pair),
                          .scratch = scratch,
                          .scores = pairs.scores(sample, head),
                          .output_gram = grams.const_data_ptr<float>() + head * head_dim * head_dim,
                          .log_sum_exp = of_pair(result.log_sum_exp),
                          .entropy = of_pair(result.entropy),
                          .largest_weight = of_pair(result.largest_weight),
                          .contribution_norm = of_pair(result.contribution_norm),
                          .num_tokens = length,
                          .num_keys = pairs.keys[sample].count,
                          .head_dim = head_dim,
                          .gate = pairs.list.scale[pair]});
      });
  return result;
}

// By plain operators.
PairStatistics plain_statistics(const AttentionProblem& problem) {
  const auto wide = sum_dtype(problem.x.scalar_type());
  const ReferenceScores scores = reference_scores(problem);
  const at::Tensor weights = scores.probabilities().to(wide);
  const at::Tensor context = weights.matmul(scores.v.to(wide));  // [B, H, T, dh]
  const at::Tensor o = problem.weights.o.to(wide)
                           .view({problem.x.size(2), problem.heads, problem.head_dim})
                           .permute({1, 2, 0});
  const double none = -std::numeric_limits<double>::infinity();
  PairStatistics result{
      scores.scores.to(wide).logsumexp(-1).masked_fill(scores.dead.squeeze(-1), none),
      -at::xlogy(weights, weights).sum(-1), weights.amax(-1), context.matmul(o).norm(2, {-1})};
  if (!problem.gate.defined()) return result;
  const at::Tensor gate = problem.gate.expand({problem.x.size(0), problem.heads}).unsqueeze(-1);
  result.contribution_norm = result.contribution_norm * gate.to(wide).abs();
  if (!problem.skip) return result;
  for (at::Tensor* tensor :
       {&result.log_sum_exp, &result.entropy, &result.largest_weight, &result.contribution_norm}) {
    *tensor = tensor->masked_fill(gate == 0, std::numeric_limits<double>::quiet_NaN());
  }
  return result;
}

}  // namespace

PairStatistics pair_statistics(const at::Tensor& x, const AttentionWeights& weights,
                               int64_t num_heads, const AttentionInput& input) {
  const at::NoGradGuard no_grad;
  const AttentionProblem problem = make_problem(make_call(x, weights, num_heads, input));
  HEADKIT_CHECK(!problem.gate.defined() || problem.gate.dim() < 3, kName, "a gate [H] or [B, H]",
                "shape ", problem.gate.sizes());
  HEADKIT_CHECK(problem.dropout_p == 0.0, kName, "no dropout", problem.dropout_p);
  if (problem.x.numel() == 0 || problem.heads == 0 || problem.head_dim == 0 ||
      problem.num_keys == 0) {
    return room(problem);
  }
  const bool kernels = !problem.keys_given() && choose_backend(problem).name == "cpu";
  return kernels ? cpu_statistics(problem) : plain_statistics(problem);
}

}  // namespace headkit
