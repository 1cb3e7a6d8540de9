#include "attention/cpu_pairs.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "operators/float32.h"

namespace headkit {
namespace {

std::vector<CpuPairs::Keys> find_keys(const at::Tensor& padding_mask, int64_t batch,
                                      int64_t length) {
  std::vector<CpuPairs::Keys> keys(batch);
  const at::Tensor mask = padding_mask.defined() ? padding_mask.contiguous() : padding_mask;
  for (int64_t b = 0; b < batch; ++b) {
    keys[b].count = length;
    if (!mask.defined()) continue;
    const bool* row = mask.const_data_ptr<bool>() + b * length;
    keys[b].count = std::count(row, row + length, true);
    if (std::all_of(row, row + keys[b].count, [](bool open) { return open; })) continue;
    for (int64_t t = 0; t < length; ++t) {
      if (row[t]) keys[b].rows.push_back(static_cast<int32_t>(t));
    }
  }
  return keys;
}

}  // namespace

CpuPairs::CpuPairs(const AttentionProblem& problem) {
  const int64_t batch = problem.x.size(0), length = problem.x.size(1);
  gate = problem.gate.defined()
             ? in_float32(problem.gate.expand({batch, problem.heads}))
             : at::ones({batch, problem.heads}, problem.x.options().dtype(at::kFloat));
  keys = find_keys(problem.key_padding_mask, batch, length);
  positions_.resize(length);
  std::iota(positions_.begin(), positions_.end(), 0);

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
}

}  // namespace headkit
