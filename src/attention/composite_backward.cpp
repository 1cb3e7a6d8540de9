#include "attention/composite_backward.h"

#include <ATen/ATen.h>

#include "attention/dropout.h"
#include "attention/pair_block.h"

namespace headkit {
namespace {

// Running sums in `sum_dtype`, in the shapes that blocks add to; undefined where not asked for.
struct GradientSums {
  at::Tensor x;                       // [B, T, D]
  at::Tensor q, k, v;                 // [H, dh, D]
  at::Tensor o;                       // [D, H, dh]
  at::Tensor q_bias, k_bias, v_bias;  // [H, dh]
  at::Tensor gate;                    // [B, H] or [B, T, H]
  at::Tensor attn_bias;               // as the argument, four-dimensional

  bool needs_scores() const {
    return x.defined() || q.defined() || k.defined() || v.defined() || q_bias.defined() ||
           k_bias.defined() || v_bias.defined() || attn_bias.defined();
  }
};

GradientSums zero_sums(const AttentionProblem& problem, const GradientMask& mask) {
  const int64_t batch = problem.x.size(0), length = problem.x.size(1), width = problem.x.size(2);
  const int64_t heads = problem.heads, head_dim = problem.head_dim;
  const auto options = problem.x.options().dtype(sum_dtype(problem.x.scalar_type()));
  const auto zeros = [&](bool wanted, at::IntArrayRef shape) {
    return wanted ? at::zeros(shape, options) : at::Tensor();
  };
  GradientSums sums;
  sums.x = zeros(mask[kX], {batch, length, width});
  sums.q = zeros(mask[kQWeight], {heads, head_dim, width});
  sums.k = zeros(mask[kKWeight], {heads, head_dim, width});
  sums.v = zeros(mask[kVWeight], {heads, head_dim, width});
  sums.o = zeros(mask[kOWeight], {width, heads, head_dim});
  sums.q_bias = zeros(mask[kQBias], {heads, head_dim});
  sums.k_bias = zeros(mask[kKBias], {heads, head_dim});
  sums.v_bias = zeros(mask[kVBias], {heads, head_dim});
  if (mask[kGate]) {
    sums.gate = problem.gate.dim() == 3 ? at::zeros({batch, length, heads}, options)
                                        : at::zeros({batch, heads}, options);
  }
  if (mask[kAttnBias]) sums.attn_bias = at::zeros(problem.attn_bias.sizes(), options);
  return sums;
}

// Adds the gradients of one projection y = x W^T + b; `dy` [n, m, T, dh].
void add_projection(const PairBlock& block, const BlockOperands& operands, const at::Tensor& dy,
                    const at::Tensor& weight, at::Tensor& weight_sum, at::Tensor& bias_sum,
                    at::Tensor& dx) {
  const int64_t heads = dy.size(1), head_dim = dy.size(3), width = operands.x.size(1);
  const at::Tensor merged = merge_heads(dy);
  const at::Tensor narrow = merged.to(operands.x.scalar_type());
  if (weight_sum.defined()) {
    block.heads.add_to(weight_sum, 0, narrow.t().matmul(operands.x).view({heads, head_dim, width}));
  }
  if (bias_sum.defined()) {
    block.heads.add_to(bias_sum, 0, merged.sum(0).view({heads, head_dim}));
  }
  if (dx.defined()) dx.add_(narrow.matmul(weight));
}

void add_block(const AttentionProblem& problem, const PairBlock& block, const at::Tensor& grad,
               GradientSums& sums) {
  const int64_t samples = block.samples.count(), heads = block.heads.count();
  const int64_t length = problem.x.size(1), width = problem.x.size(2);
  const auto dtype = problem.x.scalar_type();
  const auto wide = sum_dtype(dtype);
  const BlockOperands operands = block_operands(problem, block);
  const at::Tensor q = operands.q.to(wide), k = operands.k.to(wide), v = operands.v.to(wide);
  const at::Tensor probabilities = block_probabilities(problem, operands);
  at::Tensor factor, dropped = probabilities;
  if (problem.dropout_p > 0.0) {
    factor = dropout_factor(problem, block.samples.index(), block.heads.index(), wide);
    dropped = probabilities * factor;
  }
  const at::Tensor context = dropped.matmul(v);

  const at::Tensor dy = block.samples.of(grad, 0).reshape({samples * length, width});
  const at::Tensor u =
      split_heads(dy.matmul(operands.o_weight), samples, heads, problem.head_dim).to(wide);
  if (sums.gate.defined()) {
    at::Tensor part = (u * context).sum(-1);
    part = sums.gate.dim() == 3 ? part.transpose(1, 2) : part.sum(-1);
    block.add_to(sums.gate, 0, sums.gate.dim() - 1, part);
  }
  const at::Tensor gate = operands.gate.defined() ? operands.gate.to(wide) : at::Tensor();
  if (sums.o.defined()) {
    const at::Tensor scaled = gate.defined() ? context * gate : context;
    block.heads.add_to(
        sums.o, 1,
        dy.t().matmul(merge_heads(scaled).to(dtype)).view({width, heads, problem.head_dim}));
  }
  if (!sums.needs_scores()) return;

  const at::Tensor d_context = gate.defined() ? u * gate : u;
  at::Tensor d_scores = d_context.matmul(v.transpose(-2, -1));
  if (factor.defined()) d_scores.mul_(factor);
  d_scores.sub_((d_context * context).sum(-1, true)).mul_(probabilities);
  if (sums.attn_bias.defined()) {
    block.add_to(sums.attn_bias, 0, 1, d_scores.sum_to_size(operands.bias.sizes()));
  }
  at::Tensor dx;
  if (sums.x.defined()) dx = at::zeros_like(operands.x, problem.x.options().dtype(wide));
  add_projection(block, operands, d_scores.matmul(k).mul_(problem.scale), operands.q_weight, sums.q,
                 sums.q_bias, dx);
  add_projection(block, operands, d_scores.transpose(-2, -1).matmul(q).mul_(problem.scale),
                 operands.k_weight, sums.k, sums.k_bias, dx);
  add_projection(block, operands, dropped.transpose(-2, -1).matmul(d_context), operands.v_weight,
                 sums.v, sums.v_bias, dx);
  if (dx.defined()) block.samples.add_to(sums.x, 0, dx.view({samples, length, width}));
}

}  // namespace

DifferentiableTensors attention_composite_backward(const AttentionProblem& problem,
                                                   const at::Tensor& grad, GradientMask mask) {
  const auto wide = sum_dtype(problem.x.scalar_type());
  GradientSums sums = zero_sums(problem, mask);
  const bool only_outer = !sums.needs_scores() && !mask[kOWeight] && !mask[kGate];
  if (problem.x.numel() > 0 && problem.head_dim > 0 && !only_outer) {
    for (const PairBlock& block : pair_blocks(problem, kMaxScores)) {
      add_block(problem, block, grad, sums);
    }
  }

  DifferentiableTensors gradients = {sums.x,       sums.q,      sums.k,         sums.v,
                                     sums.o,       sums.q_bias, sums.k_bias,    sums.v_bias,
                                     at::Tensor(), sums.gate,   sums.attn_bias, at::Tensor()};
  if (mask[kOBias]) gradients[kOBias] = grad.sum({0, 1}, false, wide);
  if (mask[kGate]) {
    at::Tensor& gate = gradients[kGate];
    if (problem.dropped_output.defined()) {
      at::Tensor replaced = grad.to(wide).matmul(problem.dropped_output.to(wide).t());  // [B, T, H]
      at::Tensor open = open_pairs(problem).to(replaced.device());
      if (gate.dim() == 3) {
        open = open.unsqueeze(1);
      } else {
        replaced = replaced.sum(1);
      }
      gate.sub_(replaced.mul_(open));
    }
    if (problem.gate.dim() == 1) gate = gate.sum(0);
  }
  if (mask[kDroppedOutput]) {
    at::Tensor share = gate_complement(problem, wide);
    share = share.expand({problem.x.size(0), problem.x.size(1), problem.heads});
    gradients[kDroppedOutput] = share.reshape({-1, problem.heads})
                                    .t()
                                    .matmul(grad.to(wide).reshape({-1, problem.x.size(2)}));
  }
  return gradients;
}

}  // namespace headkit
