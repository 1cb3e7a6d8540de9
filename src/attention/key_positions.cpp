#include "attention/key_positions.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace headkit {

at::Tensor KeyRange::of(const at::Tensor& tensor, int64_t dim, int64_t num_keys) const {
  if (tensor.size(dim) == 1 && num_keys != 1) return tensor;
  return tensor.narrow(dim, first, count);
}

KeyRange reachable_keys(const AttentionProblem& problem) {
  const int64_t last_query = problem.query_offset + problem.x.size(1) - 1;
  int64_t begin = 0, end = problem.num_keys;
  if (problem.is_causal) end = std::min(end, last_query + 1);
  if (problem.window) {
    const int64_t reach = std::min(*problem.window - 1, problem.num_keys + last_query);
    begin = std::max(begin, problem.query_offset - reach);
    end = std::min(end, last_query + reach + 1);
  }
  begin = std::min(begin, problem.num_keys);
  return {begin, std::max<int64_t>(0, end - begin)};
}

at::Tensor position_mask(const AttentionProblem& problem, const KeyRange& keys) {
  const int64_t length = problem.x.size(1), offset = problem.query_offset;
  const int64_t last_key = keys.first + keys.count - 1;
  const bool causal = problem.is_causal && last_key > offset;
  const int64_t farthest = std::max(last_key - offset, offset + length - 1 - keys.first);
  const bool windowed = problem.window && farthest >= *problem.window;
  if (!causal && !windowed) return {};
  const auto options = problem.x.options().dtype(at::kLong);
  const at::Tensor distance = at::arange(offset, offset + length, options).unsqueeze(1) -
                              at::arange(keys.first, keys.first + keys.count, options);
  if (!windowed) return distance.ge(0);
  const at::Tensor near = distance.lt(*problem.window);
  return near.logical_and(causal ? distance.ge(0) : distance.gt(-*problem.window));
}

bool is_plain_causal(const AttentionProblem& problem, const KeyRange& keys) {
  return problem.is_causal && !problem.window && problem.query_offset == 0 && keys.first == 0 &&
         keys.count == problem.x.size(1);
}

}  // namespace headkit
