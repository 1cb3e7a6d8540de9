#include "attention/pair_block.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

namespace headkit {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

std::vector<int64_t> slice(const std::vector<int64_t>& values, int64_t from, int64_t count) {
  const auto begin = values.begin() + from;
  return {begin, begin + std::min<int64_t>(count, values.end() - begin)};
}

// KV heads with `group` query heads each.
struct KvGroups {
  int64_t group = 0;
  std::vector<int64_t> kv_heads;
  std::vector<int64_t> heads;  // group entries for each KV head
};

std::vector<KvGroups> equal_kv_groups(const AttentionProblem& problem,
                                      const std::vector<int64_t>& heads) {
  std::map<int64_t, std::vector<int64_t>> heads_of;
  for (const int64_t head : heads) heads_of[problem.kv_head[head]].push_back(head);
  std::vector<KvGroups> result;
  for (const auto& [kv_head, members] : heads_of) {
    const auto group = static_cast<int64_t>(members.size());
    const auto fits = [&, kv = kv_head](const KvGroups& other) {
      return other.group == group && (!problem.keys_given() || other.kv_heads.back() + 1 == kv);
    };
    auto place = std::find_if(result.begin(), result.end(), fits);
    if (place == result.end()) place = result.insert(place, KvGroups{group, {}, {}});
    place->kv_heads.push_back(kv_head);
    place->heads.insert(place->heads.end(), members.begin(), members.end());
  }
  return result;
}

bool is_run(const std::vector<int64_t>& rows) {
  for (size_t i = 1; i < rows.size(); ++i) {
    if (rows[i] != rows[i - 1] + 1) return false;
  }
  return true;
}

}  // namespace

Rows::Rows(std::vector<int64_t> rows, int64_t total, at::Device device)
    : rows_(std::move(rows)), total_(total), device_(device), is_run_(is_run(rows_)) {}

const at::Tensor& Rows::index() const {
  if (!index_.defined()) index_ = at::tensor(at::ArrayRef<int64_t>(rows_), at::kLong).to(device_);
  return index_;
}

at::Tensor Rows::of(const at::Tensor& tensor, int64_t dim) const {
  if (stands_for_all(tensor, dim)) return tensor;
  if (is_run_) return tensor.narrow(dim, rows_.empty() ? 0 : rows_.front(), count());
  return tensor.index_select(dim, index());
}

void Rows::add_to(const at::Tensor& tensor, int64_t dim, const at::Tensor& part) const {
  if (copies(tensor, dim)) {
    tensor.index_add_(dim, index(), part.to(tensor.scalar_type()));
  } else {
    of(tensor, dim).add_(part);
  }
}

at::Tensor Pairs::of(const at::Tensor& tensor, int64_t sample_dim, int64_t head_dim) const {
  // The views first, so that no copy is larger than needed.
  if (heads.copies(tensor, head_dim)) return heads.of(samples.of(tensor, sample_dim), head_dim);
  return samples.of(heads.of(tensor, head_dim), sample_dim);
}

void Pairs::add_to(const at::Tensor& tensor, int64_t sample_dim, int64_t head_dim,
                   const at::Tensor& part) const {
  if (!samples.copies(tensor, sample_dim)) {
    heads.add_to(samples.of(tensor, sample_dim), head_dim, part);
  } else if (!heads.copies(tensor, head_dim)) {
    samples.add_to(heads.of(tensor, head_dim), sample_dim, part);
  } else {
    for (int64_t i = 0; i < heads.count(); ++i) {
      samples.add_to(heads.one(i).of(tensor, head_dim), sample_dim, part.narrow(head_dim, i, 1));
    }
  }
}

HeadTransform transform_of(HeadTransform transform, const Rows& samples) {
  if (transform.rotary_cos.defined()) {
    transform.rotary_cos = samples.of(transform.rotary_cos, 0);
    transform.rotary_sin = samples.of(transform.rotary_sin, 0);
  }
  return transform;
}

WorkList open_pairs(const AttentionProblem& problem) {
  const int64_t batch = problem.x.size(0);
  if (!problem.skip || !problem.gate.defined()) return make_dense_work_list(batch, problem.heads);
  at::Tensor gate = problem.gate;
  if (gate.dim() == 3) {
    gate = gate.size(1) == 0 ? at::zeros({batch, problem.heads}) : gate.abs().amax(1);
  }
  return make_work_list(gate.expand({batch, problem.heads}).to(at::kCPU).contiguous());
}

std::vector<HeadGroup> head_groups(const WorkList& list) {
  std::map<std::vector<int64_t>, size_t> group_of_samples;
  std::vector<HeadGroup> groups;
  for (int64_t head = 0; head < list.heads; ++head) {
    std::vector<int64_t> samples(list.sample_index.begin() + list.col_offset[head],
                                 list.sample_index.begin() + list.col_offset[head + 1]);
    if (samples.empty()) continue;
    const auto [place, is_new] = group_of_samples.try_emplace(samples, groups.size());
    if (is_new) groups.push_back({std::move(samples), {}});
    groups[place->second].second.push_back(head);
  }
  return groups;
}

std::vector<PairBlock> pair_blocks(const AttentionProblem& problem, const WorkList& open,
                                   int64_t max_scores) {
  const int64_t scores = std::max<int64_t>(1, problem.x.size(1) * reachable_keys(problem).count);
  const int64_t most_pairs = std::max<int64_t>(1, max_scores / scores);
  const at::Device device = problem.x.device();
  std::vector<PairBlock> blocks;
  for (const auto& [samples, heads] : head_groups(open)) {
    const auto sample_count = static_cast<int64_t>(samples.size());
    for (const KvGroups& equal : equal_kv_groups(problem, heads)) {
      const auto kv_count = static_cast<int64_t>(equal.kv_heads.size());
      const int64_t group_step = std::min(equal.group, most_pairs);
      const int64_t kv_step = std::clamp<int64_t>(most_pairs / equal.group, 1, kv_count);
      const int64_t sample_step =
          std::clamp<int64_t>(most_pairs / (group_step * kv_step), 1, sample_count);
      for (int64_t kv = 0; kv < kv_count; kv += kv_step) {
        const Rows kv_heads(slice(equal.kv_heads, kv, kv_step), problem.kv_heads, device);
        for (int64_t g = 0; g < equal.group; g += group_step) {
          const int64_t group = std::min(group_step, equal.group - g);
          const Rows of_heads(slice(equal.heads, kv * equal.group + g, kv_heads.count() * group),
                              problem.heads, device);
          for (int64_t b = 0; b < sample_count; b += sample_step) {
            blocks.push_back({Rows(slice(samples, b, sample_step), problem.x.size(0), device),
                              of_heads, kv_heads});
          }
        }
      }
    }
  }
  return blocks;
}

at::Tensor fold_groups(const at::Tensor& heads, int64_t kv_heads) {
  if (heads.size(1) == kv_heads) return heads;
  const int64_t rows = heads.size(1) / kv_heads * heads.size(2);
  return heads.reshape({heads.size(0), kv_heads, rows, heads.size(3)});
}

at::Tensor group_matmul(const at::Tensor& a, const at::Tensor& b) {
  return fold_groups(a, b.size(1)).matmul(b).view({a.size(0), a.size(1), a.size(2), b.size(3)});
}

at::Tensor merge_heads(const at::Tensor& context) {
  return context.transpose(1, 2).reshape(
      {context.size(0) * context.size(2), context.size(1) * context.size(3)});
}

at::Tensor split_heads(const at::Tensor& merged, int64_t samples, int64_t heads, int64_t head_dim) {
  return merged.view({samples, merged.size(0) / samples, heads, head_dim}).transpose(1, 2);
}

BlockOperands block_operands(const AttentionProblem& problem, const PairBlock& block,
                             const at::Tensor& k, const at::Tensor& v, const KeyRange& keys,
                             const at::Tensor& position) {
  const int64_t length = problem.x.size(1), width = problem.x.size(2);
  const int64_t samples = block.samples.count(), heads = block.heads.count();
  const int64_t rows = heads * problem.head_dim;
  const AttentionWeights& w = problem.weights;
  BlockOperands operands;
  operands.x = block.samples.of(problem.x, 0).reshape({samples * length, width});
  operands.q_weight = block.heads.of(w.q.reshape({problem.heads, problem.head_dim, width}), 0)
                          .reshape({rows, width});
  operands.o_weight = block.heads.of(w.o.reshape({width, problem.heads, problem.head_dim}), 1)
                          .reshape({width, rows});
  at::Tensor q_bias;
  if (w.q_bias.defined()) {
    q_bias = block.heads.of(w.q_bias.reshape({problem.heads, problem.head_dim}), 0).reshape({rows});
  }
  operands.projected_q = split_heads(at::linear(operands.x, operands.q_weight, q_bias), samples,
                                     heads, problem.head_dim);
  operands.q_transform = transform_of(problem.q_transform, block.samples);
  operands.q = operands.q_transform.apply(operands.projected_q);
  operands.k = keys.of(block.kv_pairs().of(k, 0, 1), 2, problem.num_keys);
  operands.v = keys.of(block.kv_pairs().of(v, 0, 1), 2, problem.num_keys);

  if (problem.gate.defined()) {
    at::Tensor gate = problem.gate;
    if (gate.dim() == 1) gate = gate.unsqueeze(0);
    if (gate.dim() == 2) gate = gate.unsqueeze(1);
    operands.gate = block.pairs().of(gate, 0, 2).transpose(1, 2).unsqueeze(-1);
  }
  if (problem.attn_bias.defined()) {
    operands.bias = keys.of(block.pairs().of(problem.attn_bias, 0, 1), 3, problem.num_keys);
  }
  if (problem.key_padding_mask.defined()) {
    operands.admissible =
        keys.of(block.samples.of(problem.key_padding_mask, 0), 1, problem.num_keys)
            .unsqueeze(1)
            .unsqueeze(1);
  }
  if (position.defined()) {
    operands.admissible = operands.admissible.defined() ? operands.admissible.logical_and(position)
                                                        : position.unsqueeze(0).unsqueeze(0);
  }
  return operands;
}

at::Tensor block_probabilities(const AttentionProblem& problem, const BlockOperands& operands) {
  const auto wide = sum_dtype(operands.q.scalar_type());
  at::Tensor scores =
      group_matmul(operands.q.to(wide), operands.k.to(wide).transpose(-2, -1)).mul_(problem.scale);
  if (operands.bias.defined()) scores.add_(operands.bias);
  if (operands.admissible.defined()) {
    scores.masked_fill_(operands.admissible.logical_not(), kMinusInfinity);
  }
  if (!operands.admissible.defined() && !operands.bias.defined()) return scores.softmax(-1);
  const at::Tensor dead = scores.eq(kMinusInfinity).all(-1, true);
  return scores.softmax(-1).masked_fill_(dead, 0.0);
}

}  // namespace headkit
