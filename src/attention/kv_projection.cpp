#include "attention/kv_projection.h"

#include <ATen/ATen.h>

#include "attention/pair_block.h"

namespace headkit {
namespace {

// One block of KV heads: each of m heads for each of n samples.
struct KvBlock {
  Rows samples, heads;
  at::Tensor source;  // [n * S, Dk]
  HeadTransform transform;

  at::Tensor rows_of(const KvProblem& problem, const at::Tensor& weight) const {
    const int64_t width = problem.source.size(2);
    return heads.of(weight.reshape({problem.heads, problem.head_dim, width}), 0)
        .reshape({heads.count() * problem.head_dim, width});
  }

  // [n, m, S, dh]
  at::Tensor project(const KvProblem& problem, const at::Tensor& weight,
                     const at::Tensor& bias) const {
    at::Tensor chosen;
    if (bias.defined()) {
      chosen = heads.of(bias.reshape({problem.heads, problem.head_dim}), 0).reshape({-1});
    }
    return split_heads(at::linear(source, rows_of(problem, weight), chosen), samples.count(),
                       heads.count(), problem.head_dim);
  }
};

std::vector<KvBlock> kv_blocks(const KvProblem& problem) {
  const at::Device device = problem.source.device();
  const int64_t length = problem.source.size(1), width = problem.source.size(2);
  std::vector<KvBlock> blocks;
  if (problem.head_dim == 0 || length == 0) return blocks;
  for (const auto& [samples, heads] : head_groups(problem.open)) {
    const Rows chosen(samples, problem.source.size(0), device);
    const int64_t rows = chosen.count() * length;
    blocks.push_back({chosen, Rows(heads, problem.heads, device),
                      chosen.of(problem.source, 0).reshape({rows, width}),
                      transform_of(problem.transform, chosen)});
  }
  return blocks;
}

// Adds the gradients of one projection y = x W^T + b; `dy` [n, m, S, dh].
void add_projection(const KvProblem& problem, const KvBlock& block, const at::Tensor& dy,
                    const at::Tensor& weight, const at::Tensor& weight_sum,
                    const at::Tensor& bias_sum, at::Tensor& dx) {
  const at::Tensor merged = merge_heads(dy);
  const at::Tensor narrow = merged.to(block.source.scalar_type());
  const int64_t heads = block.heads.count();
  if (weight_sum.defined()) {
    const at::Tensor part = narrow.t().matmul(block.source);
    block.heads.add_to(weight_sum, 0, part.view({heads, problem.head_dim, part.size(1)}));
  }
  if (bias_sum.defined()) {
    block.heads.add_to(bias_sum, 0, merged.sum(0).view({heads, problem.head_dim}));
  }
  if (!dx.defined()) return;
  const at::Tensor part = narrow.matmul(block.rows_of(problem, weight));
  block.samples.add_to(dx, 0, part.view({block.samples.count(), dx.size(1), dx.size(2)}));
}

}  // namespace

WorkList open_kv_heads(const AttentionProblem& problem, const WorkList& open) {
  if (problem.own_kv_heads()) return open;
  const at::Tensor kv_head = at::tensor(at::ArrayRef<int64_t>(problem.kv_head), at::kLong);
  return make_work_list(at::zeros({open.batch, problem.kv_heads})
                            .index_add_(1, kv_head, open.to_keep().to(at::kFloat)));
}

KvProblem kv_problem(const AttentionProblem& problem, const WorkList& open) {
  KvProblem kv;
  kv.source = problem.source();
  kv.k_weight = problem.weights.k;
  kv.v_weight = problem.weights.v;
  kv.k_bias = problem.weights.k_bias;
  kv.v_bias = problem.weights.v_bias;
  kv.heads = problem.kv_heads;
  kv.head_dim = problem.head_dim;
  kv.transform = problem.k_transform;
  kv.open = open_kv_heads(problem, open);
  return kv;
}

std::pair<at::Tensor, at::Tensor> project_keys_values(const KvProblem& problem) {
  const at::Tensor& source = problem.source;
  const std::vector<int64_t> shape = {source.size(0), problem.heads, source.size(1),
                                      problem.head_dim};
  at::Tensor keys, values;
  const std::vector<KvBlock> blocks = kv_blocks(problem);
  for (const KvBlock& block : blocks) {
    const at::Tensor k =
        block.transform.apply(block.project(problem, problem.k_weight, problem.k_bias));
    const at::Tensor v = block.project(problem, problem.v_weight, problem.v_bias);
    if (k.sizes() == at::IntArrayRef(shape)) return {k, v};
    if (!keys.defined()) {
      keys = at::zeros(shape, source.options());
      values = at::zeros(shape, source.options());
    }
    const Pairs place{block.samples, block.heads};
    place.add_to(keys, 0, 1, k);
    place.add_to(values, 0, 1, v);
  }
  if (keys.defined()) return {keys, values};
  return {at::zeros(shape, source.options()), at::zeros(shape, source.options())};
}

std::pair<at::Tensor, at::Tensor> reference_keys_values(const KvProblem& problem) {
  const auto project = [&](const at::Tensor& weight, const at::Tensor& bias) {
    at::Tensor y = problem.source.matmul(weight.t());
    if (bias.defined()) y = y + bias;
    return y.view({problem.source.size(0), problem.source.size(1), problem.heads, problem.head_dim})
        .transpose(1, 2);
  };
  return {problem.transform.apply(project(problem.k_weight, problem.k_bias)),
          project(problem.v_weight, problem.v_bias)};
}

KvTensors project_keys_values_backward(const KvProblem& problem, const at::Tensor& dk,
                                       const at::Tensor& dv, const KvMask& mask) {
  const auto options = problem.source.options().dtype(sum_dtype(problem.source.scalar_type()));
  const int64_t heads = problem.heads, head_dim = problem.head_dim, width = problem.source.size(2);
  const auto zeros = [&](KvDifferentiable argument, at::IntArrayRef shape) {
    return mask[argument] ? at::zeros(shape, options) : at::Tensor();
  };
  KvTensors sums;
  sums[kSource] = zeros(kSource, problem.source.sizes());
  sums[kSourceKWeight] = zeros(kSourceKWeight, {heads, head_dim, width});
  sums[kSourceVWeight] = zeros(kSourceVWeight, {heads, head_dim, width});
  sums[kSourceKBias] = zeros(kSourceKBias, {heads, head_dim});
  sums[kSourceVBias] = zeros(kSourceVBias, {heads, head_dim});
  sums[kSourceKNorm] = zeros(kSourceKNorm, {head_dim});
  for (const KvBlock& block : kv_blocks(problem)) {
    const Pairs place{block.samples, block.heads};
    at::Tensor k_grad = place.of(dk, 0, 1);
    if (!problem.transform.empty()) {
      const at::Tensor projected = problem.transform.norm_weight.defined()
                                       ? block.project(problem, problem.k_weight, problem.k_bias)
                                       : at::Tensor();
      k_grad = block.transform.backward(projected, k_grad, sums[kSourceKNorm]);
    }
    add_projection(problem, block, k_grad, problem.k_weight, sums[kSourceKWeight],
                   sums[kSourceKBias], sums[kSource]);
    add_projection(problem, block, place.of(dv, 0, 1), problem.v_weight, sums[kSourceVWeight],
                   sums[kSourceVBias], sums[kSource]);
  }
  return sums;
}

}  // namespace headkit
