#include "attention/cpu_pairs.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "attention/key_positions.h"
#include "attention/kv_projection.h"
#include "operators/float32.h"

namespace headkit {
namespace {

std::vector<CpuPairs::Keys> find_keys(const AttentionProblem& problem) {
  const int64_t batch = problem.x.size(0);
  const KeyRange range = reachable_keys(problem);
  std::vector<CpuPairs::Keys> keys(batch);
  const at::Tensor mask = problem.key_padding_mask.defined() ? problem.key_padding_mask.contiguous()
                                                             : problem.key_padding_mask;
  for (int64_t b = 0; b < batch; ++b) {
    CpuPairs::Keys& of_sample = keys[b];
    of_sample.first = range.first;
    of_sample.count = range.count;
    if (!mask.defined()) continue;
    const bool* row = mask.const_data_ptr<bool>() + b * problem.num_keys;
    const bool* begin = row + range.first;
    const bool* end = begin + range.count;
    of_sample.count = std::count(begin, end, true);
    begin = std::find(begin, end, true);
    of_sample.first = of_sample.count > 0 ? begin - row : range.first;
    if (std::all_of(begin, begin + of_sample.count, [](bool open) { return open; })) continue;
    for (; begin < end; ++begin) {
      if (*begin) of_sample.rows.push_back(static_cast<int32_t>(begin - row));
    }
  }
  return keys;
}

}  // namespace

CpuPairs::CpuPairs(const AttentionProblem& problem)
    : kv_head_(problem.kv_head),
      query_offset_(problem.query_offset),
      window_(problem.window.value_or(0)),
      causal_(problem.is_causal) {
  const int64_t batch = problem.x.size(0);
  gate = problem.gate.defined()
             ? in_float32(problem.gate.expand({batch, problem.heads}))
             : at::ones({batch, problem.heads}, problem.x.options().dtype(at::kFloat));
  keys = find_keys(problem);
  positions_.resize(problem.num_keys);
  std::iota(positions_.begin(), positions_.end(), 0);
  if (problem.attn_bias.defined()) bias_ = problem.attn_bias.to(at::kFloat);

  const at::Tensor runs = problem.skip ? gate : at::ones_like(gate);
  list = make_work_list(runs);  // which refuses gates that are not finite
  const auto idle = [&](const Keys& of_sample) {
    return of_sample.count == 0 || problem.head_dim == 0;
  };
  if (std::any_of(keys.begin(), keys.end(), idle)) {
    at::Tensor some = runs.clone();
    for (int64_t b = 0; b < batch; ++b) {
      if (idle(keys[b])) some[b].zero_();
    }
    list = make_work_list(some);
  }
  for (int64_t b = 0; b < batch; ++b) {
    for (int32_t pair = list.row_offset[b]; pair < list.row_offset[b + 1]; ++pair) {
      list.scale[pair] = gate.const_data_ptr<float>()[b * problem.heads + list.head_index[pair]];
    }
  }
  kv = open_kv_heads(problem, list);
}

int64_t CpuPairs::kv_entry(int64_t sample, int64_t head) const {
  const auto begin = kv.head_index.begin();
  return std::lower_bound(begin + kv.row_offset[sample], begin + kv.row_offset[sample + 1],
                          static_cast<int32_t>(kv_head_[head])) -
         begin;
}

kernels::ScoreParams CpuPairs::scores(int64_t sample, int64_t head) const {
  kernels::ScoreParams params{.key_position = key_position(sample),
                              .bias = nullptr,
                              .bias_query_stride = 0,
                              .bias_key_stride = 0,
                              .query_offset = query_offset_,
                              .window = window_,
                              .causal = causal_};
  if (!bias_.defined()) return params;
  const auto stride = [this](int64_t dim) { return bias_.size(dim) == 1 ? 0 : bias_.stride(dim); };
  params.bias = bias_.const_data_ptr<float>() + sample * stride(0) + head * stride(1);
  params.bias_query_stride = stride(2);
  params.bias_key_stride = stride(3);
  return params;
}

std::vector<bool> open_heads(const WorkList& list) {
  std::vector<bool> open(list.heads);
  for (int64_t head = 0; head < list.heads; ++head) {
    open[head] = list.col_offset[head] < list.col_offset[head + 1];
  }
  return open;
}

}  // namespace headkit
