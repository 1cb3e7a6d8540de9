#include "attention/pair_block.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "headkit/plan/work_list.h"

namespace headkit {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

WorkList work_list(const AttentionProblem& problem) {
  const int64_t batch = problem.x.size(0);
  if (!problem.skip || !problem.gate.defined()) return make_dense_work_list(batch, problem.heads);
  at::Tensor gate = problem.gate;
  if (gate.dim() == 3) gate = gate.abs().amax(1);
  return make_work_list(gate.expand({batch, problem.heads}).to(at::kCPU).contiguous());
}

std::vector<int64_t> slice(const std::vector<int64_t>& values, int64_t from, int64_t count) {
  const auto begin = values.begin() + from;
  return {begin, begin + std::min<int64_t>(count, values.end() - begin)};
}

}  // namespace

Rows::Rows(std::vector<int64_t> rows, int64_t total, at::Device device)
    : rows_(std::move(rows)), total_(total), device_(device) {}

const at::Tensor& Rows::index() const {
  if (!index_.defined()) index_ = at::tensor(at::ArrayRef<int64_t>(rows_), at::kLong).to(device_);
  return index_;
}

at::Tensor Rows::of(const at::Tensor& tensor, int64_t dim) const {
  if (stands_for_all(tensor, dim)) return tensor;
  if (is_run()) return tensor.narrow(dim, rows_.empty() ? 0 : rows_.front(), count());
  return tensor.index_select(dim, index());
}

void Rows::add_to(at::Tensor& tensor, int64_t dim, const at::Tensor& part) const {
  if (stands_for_all(tensor, dim)) {
    tensor.add_(part);
  } else if (is_run()) {
    tensor.narrow(dim, rows_.empty() ? 0 : rows_.front(), count()).add_(part);
  } else {
    tensor.index_add_(dim, index(), part.to(tensor.scalar_type()));
  }
}

void PairBlock::add_to(at::Tensor& tensor, int64_t sample_dim, int64_t head_dim,
                       const at::Tensor& part) const {
  at::Tensor of_samples = samples.of(tensor, sample_dim);
  const bool is_copy = !of_samples.is_alias_of(tensor);
  heads.add_to(of_samples, head_dim, part);
  if (is_copy) tensor.index_copy_(sample_dim, samples.index(), of_samples);
}

at::Tensor open_pairs(const AttentionProblem& problem) { return work_list(problem).to_keep(); }

std::vector<PairBlock> pair_blocks(const AttentionProblem& problem, int64_t max_scores) {
  const WorkList list = work_list(problem);
  std::map<std::vector<int64_t>, size_t> group_of_samples;
  std::vector<std::pair<std::vector<int64_t>, std::vector<int64_t>>> groups;  // samples, heads
  for (int64_t head = 0; head < list.heads; ++head) {
    std::vector<int64_t> samples(list.sample_index.begin() + list.col_offset[head],
                                 list.sample_index.begin() + list.col_offset[head + 1]);
    if (samples.empty()) continue;
    const auto [place, is_new] = group_of_samples.try_emplace(samples, groups.size());
    if (is_new) groups.push_back({std::move(samples), {}});
    groups[place->second].second.push_back(head);
  }

  const int64_t length = problem.x.size(1);
  const int64_t scores = std::max<int64_t>(1, length * length);
  const at::Device device = problem.x.device();
  std::vector<PairBlock> blocks;
  for (const auto& [samples, heads] : groups) {
    const auto head_count = static_cast<int64_t>(heads.size());
    const auto sample_count = static_cast<int64_t>(samples.size());
    const int64_t head_step = std::clamp<int64_t>(max_scores / scores, 1, head_count);
    const int64_t sample_step =
        std::clamp<int64_t>(max_scores / scores / head_step, 1, sample_count);
    for (int64_t h = 0; h < head_count; h += head_step) {
      for (int64_t b = 0; b < sample_count; b += sample_step) {
        blocks.push_back({Rows(slice(samples, b, sample_step), problem.x.size(0), device),
                          Rows(slice(heads, h, head_step), problem.heads, device)});
      }
    }
  }
  return blocks;
}

at::Tensor merge_heads(const at::Tensor& context) {
  return context.transpose(1, 2).reshape(
      {context.size(0) * context.size(2), context.size(1) * context.size(3)});
}

at::Tensor split_heads(const at::Tensor& merged, int64_t samples, int64_t heads, int64_t head_dim) {
  return merged.view({samples, merged.size(0) / samples, heads, head_dim}).transpose(1, 2);
}

at::ScalarType sum_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

BlockOperands block_operands(const AttentionProblem& problem, const PairBlock& block) {
  const int64_t length = problem.x.size(1), width = problem.x.size(2);
  const int64_t samples = block.samples.count(), heads = block.heads.count();
  const int64_t rows = heads * problem.head_dim;
  const AttentionWeights& w = problem.weights;
  BlockOperands operands;
  operands.x = block.samples.of(problem.x, 0).reshape({samples * length, width});

  const auto weight = [&](const at::Tensor& all) {
    return block.heads.of(all.reshape({problem.heads, problem.head_dim, width}), 0)
        .reshape({rows, width});
  };
  const auto project = [&](const at::Tensor& weight, const at::Tensor& bias) {
    const at::Tensor selected =
        bias.defined()
            ? block.heads.of(bias.reshape({problem.heads, problem.head_dim}), 0).reshape({rows})
            : at::Tensor();
    return split_heads(at::linear(operands.x, weight, selected), samples, heads, problem.head_dim);
  };
  operands.q_weight = weight(w.q);
  operands.k_weight = weight(w.k);
  operands.v_weight = weight(w.v);
  operands.o_weight = block.heads.of(w.o.reshape({width, problem.heads, problem.head_dim}), 1)
                          .reshape({width, rows});
  operands.q = project(operands.q_weight, w.q_bias);
  operands.k = project(operands.k_weight, w.k_bias);
  operands.v = project(operands.v_weight, w.v_bias);

  if (problem.gate.defined()) {
    at::Tensor gate = problem.gate;
    if (gate.dim() == 1) gate = gate.unsqueeze(0);
    if (gate.dim() == 2) gate = gate.unsqueeze(1);
    operands.gate = block.heads.of(block.samples.of(gate, 0), 2).transpose(1, 2).unsqueeze(-1);
  }
  if (problem.attn_bias.defined()) {
    operands.bias = block.heads.of(block.samples.of(problem.attn_bias, 0), 1);
  }
  if (problem.key_padding_mask.defined()) {
    operands.admissible = block.samples.of(problem.key_padding_mask, 0).unsqueeze(1).unsqueeze(1);
  }
  if (problem.is_causal) {
    const at::Tensor causal =
        at::ones({length, length}, problem.x.options().dtype(at::kBool)).tril();
    operands.admissible = operands.admissible.defined() ? operands.admissible.logical_and(causal)
                                                        : causal.view({1, 1, length, length});
  }
  return operands;
}

at::Tensor block_probabilities(const AttentionProblem& problem, const BlockOperands& operands) {
  const auto wide = sum_dtype(operands.q.scalar_type());
  at::Tensor scores =
      operands.q.to(wide).matmul(operands.k.to(wide).transpose(-2, -1)).mul_(problem.scale);
  if (operands.bias.defined()) scores.add_(operands.bias);
  if (operands.admissible.defined()) {
    scores.masked_fill_(operands.admissible.logical_not(), kMinusInfinity);
  }
  if (!operands.admissible.defined() && !operands.bias.defined()) return scores.softmax(-1);
  const at::Tensor dead = scores.eq(kMinusInfinity).all(-1, true);
  return scores.softmax(-1).masked_fill_(dead, 0.0);
}

}  // namespace headkit
