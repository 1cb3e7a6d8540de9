#include "attention/composite_backward.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "attention/dropout.h"
#include "attention/kv_projection.h"
#include "attention/pair_block.h"

namespace headkit {
namespace {

// What is asked for of the projection of keys and values.
KvMask source_mask(const AttentionProblem& problem, const GradientMask& mask) {
  if (problem.keys_given()) return {};
  return {mask[problem.kv.defined() ? kKv : kX],
          mask[kKWeight],
          mask[kVWeight],
          mask[kKBias],
          mask[kVBias],
          mask[kKNormWeight]};
}

// Running sums in `sum_dtype`, in the shapes that blocks add to; undefined where not asked for.
struct GradientSums {
  at::Tensor x;          // [B, T, D]
  at::Tensor q, q_bias;  // [H, dh, D], [H, dh]
  at::Tensor q_norm;     // [dh]
  at::Tensor o;          // [D, H, dh]
  at::Tensor k, v;       // [B, Hkv, S, dh]: of keys and values
  at::Tensor gate;       // [B, H] or [B, T, H]
  at::Tensor attn_bias;  // as the argument, four-dimensional

  bool of_queries() const {
    return x.defined() || q.defined() || q_bias.defined() || q_norm.defined();
  }
  bool of_scores() const { return of_queries() || k.defined() || attn_bias.defined(); }
};

GradientSums zero_sums(const AttentionProblem& problem, const GradientMask& mask) {
  const int64_t batch = problem.x.size(0), length = problem.x.size(1), width = problem.x.size(2);
  const int64_t heads = problem.heads, head_dim = problem.head_dim;
  const auto options = problem.x.options().dtype(sum_dtype(problem.x.scalar_type()));
  const auto zeros = [&](bool wanted, at::IntArrayRef shape) {
    return wanted ? at::zeros(shape, options) : at::Tensor();
  };
  const KvMask source = source_mask(problem, mask);
  const bool of_keys =
      mask[kK] || mask[kV] ||
      std::any_of(source.begin(), source.end(), [](bool wanted) { return wanted; });
  const std::vector<int64_t> key_shape = {batch, problem.kv_heads, problem.num_keys, head_dim};
  GradientSums sums;
  sums.x = zeros(mask[kX], {batch, length, width});
  sums.q = zeros(mask[kQWeight], {heads, head_dim, width});
  sums.q_bias = zeros(mask[kQBias], {heads, head_dim});
  sums.q_norm = zeros(mask[kQNormWeight], {head_dim});
  sums.o = zeros(mask[kOWeight], {width, heads, head_dim});
  sums.k = zeros(of_keys, key_shape);
  sums.v = zeros(of_keys, key_shape);
  if (mask[kGate]) {
    sums.gate = problem.gate.dim() == 3 ? at::zeros({batch, length, heads}, options)
                                        : at::zeros({batch, heads}, options);
  }
  if (mask[kAttnBias]) sums.attn_bias = at::zeros(problem.attn_bias.sizes(), options);
  return sums;
}

// Adds the gradients of the projection of queries; `dq` [n, m, T, dh].
void add_queries(const AttentionProblem& problem, const PairBlock& block,
                 const BlockOperands& operands, const at::Tensor& dq, GradientSums& sums) {
  const int64_t heads = block.heads.count(), width = problem.x.size(2);
  const at::Tensor merged =
      merge_heads(operands.q_transform.backward(operands.projected_q, dq, sums.q_norm));
  const at::Tensor narrow = merged.to(operands.x.scalar_type());
  if (sums.q.defined()) {
    block.heads.add_to(sums.q, 0,
                       narrow.t().matmul(operands.x).view({heads, problem.head_dim, width}));
  }
  if (sums.q_bias.defined()) {
    block.heads.add_to(sums.q_bias, 0, merged.sum(0).view({heads, problem.head_dim}));
  }
  if (sums.x.defined()) {
    block.samples.add_to(
        sums.x, 0,
        narrow.matmul(operands.q_weight).view({block.samples.count(), problem.x.size(1), width}));
  }
}

void add_block(const AttentionProblem& problem, const PairBlock& block,
               const BlockOperands& operands, const KeyRange& keys, const at::Tensor& grad,
               GradientSums& sums) {
  const int64_t samples = block.samples.count(), heads = block.heads.count();
  const int64_t kv_heads = block.kv_heads.count();
  const int64_t length = problem.x.size(1), width = problem.x.size(2);
  const auto dtype = problem.x.scalar_type();
  const auto wide = sum_dtype(dtype);
  const at::Tensor q = operands.q.to(wide), k = operands.k.to(wide), v = operands.v.to(wide);
  const at::Tensor probabilities = block_probabilities(problem, operands);
  at::Tensor factor, dropped = probabilities;
  if (problem.dropout_p > 0.0) {
    factor = dropout_factor(problem, block.samples.index(), block.heads.index(), keys, wide);
    dropped = probabilities * factor;
  }
  const at::Tensor context = group_matmul(dropped, v);

  const at::Tensor dy = block.samples.of(grad, 0).reshape({samples * length, width});
  const at::Tensor u =
      split_heads(dy.matmul(operands.o_weight), samples, heads, problem.head_dim).to(wide);
  if (sums.gate.defined()) {
    at::Tensor part = (u * context).sum(-1);
    part = sums.gate.dim() == 3 ? part.transpose(1, 2) : part.sum(-1);
    block.pairs().add_to(sums.gate, 0, sums.gate.dim() - 1, part);
  }
  const at::Tensor gate = operands.gate.defined() ? operands.gate.to(wide) : at::Tensor();
  if (sums.o.defined()) {
    const at::Tensor scaled = gate.defined() ? context * gate : context;
    block.heads.add_to(
        sums.o, 1,
        dy.t().matmul(merge_heads(scaled).to(dtype)).view({width, heads, problem.head_dim}));
  }
  if (!sums.of_scores()) return;

  const at::Tensor d_context = gate.defined() ? u * gate : u;
  at::Tensor d_scores = group_matmul(d_context, v.transpose(-2, -1));
  if (factor.defined()) d_scores.mul_(factor);
  d_scores.sub_((d_context * context).sum(-1, true)).mul_(probabilities);
  if (sums.attn_bias.defined()) {
    const at::Tensor place = keys.of(sums.attn_bias, 3, problem.num_keys);
    block.pairs().add_to(place, 0, 1, d_scores.sum_to_size(operands.bias.sizes()));
  }
  if (sums.of_queries()) {
    add_queries(problem, block, operands, group_matmul(d_scores, k).mul_(problem.scale), sums);
  }
  if (!sums.k.defined()) return;
  const auto add_keys = [&](const at::Tensor& sum, const at::Tensor& part) {
    block.kv_pairs().add_to(sum.narrow(2, keys.first, keys.count), 0, 1, part);
  };
  const auto transposed = [&](const at::Tensor& scores) {
    return fold_groups(scores, kv_heads).transpose(-2, -1);
  };
  add_keys(sums.k, transposed(d_scores).matmul(fold_groups(q, kv_heads)).mul_(problem.scale));
  add_keys(sums.v, transposed(dropped).matmul(fold_groups(d_context, kv_heads)));
}

}  // namespace

DifferentiableTensors attention_composite_backward(const AttentionProblem& problem,
                                                   const at::Tensor& grad, GradientMask mask) {
  const auto wide = sum_dtype(problem.x.scalar_type());
  GradientSums sums = zero_sums(problem, mask);
  const bool only_outer = !sums.of_scores() && !mask[kOWeight] && !mask[kGate];
  const KeyRange keys = reachable_keys(problem);
  const WorkList open = open_pairs(problem);
  KvTensors of_source;
  if (problem.x.numel() > 0 && problem.head_dim > 0 && keys.count > 0 && !only_outer) {
    const KvProblem source = problem.keys_given() ? KvProblem() : kv_problem(problem, open);
    const auto [k, v] =
        problem.keys_given() ? std::pair(problem.k, problem.v) : project_keys_values(source);
    const at::Tensor position = position_mask(problem, keys);
    for (const PairBlock& block : pair_blocks(problem, open, kMaxScores)) {
      add_block(problem, block, block_operands(problem, block, k, v, keys, position), keys, grad,
                sums);
    }
    if (!problem.keys_given() && sums.k.defined()) {
      of_source = project_keys_values_backward(source, sums.k, sums.v, source_mask(problem, mask));
    }
  }

  DifferentiableTensors gradients;
  gradients[kX] = sums.x;
  gradients[kQWeight] = sums.q;
  gradients[kQBias] = sums.q_bias;
  gradients[kQNormWeight] = sums.q_norm;
  gradients[kOWeight] = sums.o;
  gradients[kGate] = sums.gate;
  gradients[kAttnBias] = sums.attn_bias;
  if (problem.keys_given()) {
    gradients[kK] = sums.k;
    gradients[kV] = sums.v;
  } else {
    gradients[kKWeight] = of_source[kSourceKWeight];
    gradients[kVWeight] = of_source[kSourceVWeight];
    gradients[kKBias] = of_source[kSourceKBias];
    gradients[kVBias] = of_source[kSourceVBias];
    gradients[kKNormWeight] = of_source[kSourceKNorm];
    const at::Tensor& source = of_source[kSource];
    if (problem.kv.defined()) {
      gradients[kKv] = source;
    } else if (source.defined()) {
      gradients[kX].add_(source);
    }
  }
  if (mask[kOBias]) gradients[kOBias] = grad.sum({0, 1}, false, wide);
  if (mask[kGate]) {
    at::Tensor& gate = gradients[kGate];
    if (problem.dropped_output.defined()) {
      at::Tensor replaced = grad.to(wide).matmul(problem.dropped_output.to(wide).t());  // [B, T, H]
      at::Tensor is_open = open.to_keep().to(replaced.device());
      if (gate.dim() == 3) {
        is_open = is_open.unsqueeze(1);
      } else {
        replaced = replaced.sum(1);
      }
      gate.sub_(replaced.mul_(is_open));
    }
    if (problem.gate.dim() == 1) gate = gate.sum(0);
  }
  if (mask[kDroppedOutput] && problem.gate.defined()) {
    at::Tensor share = gate_complement(problem, wide);
    const int64_t batch = problem.x.size(0), length = problem.x.size(1);
    const at::Tensor rows = grad.to(wide).reshape({batch * length, problem.x.size(2)});
    share = share.expand({batch, length, problem.heads}).reshape({batch * length, problem.heads});
    gradients[kDroppedOutput] = share.t().matmul(rows);
  }
  return gradients;
}

}  // namespace headkit
