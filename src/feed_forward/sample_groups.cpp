#include "feed_forward/sample_groups.h"

#include <ATen/ATen.h>

#include <map>
#include <numeric>
#include <utility>

#include "headkit/core/error.h"

namespace headkit {
namespace {

SampleGroup make_group(const FeedForwardProblem& problem, const float* gate) {
  SampleGroup group;
  for (int64_t block = 0; block < problem.blocks; ++block) {
    const float value = gate == nullptr ? 1.0f : gate[block];
    if (problem.skip && value == 0.0f) continue;
    group.blocks.push_back(static_cast<int32_t>(block));
    group.scale.push_back(value);
  }
  return group;
}

at::Tensor gate_on_cpu(const FeedForwardProblem& problem) {
  if (!problem.gate.defined()) return {};
  const at::Tensor gate = problem.gate.to(at::kCPU, at::kFloat).contiguous();
  HEADKIT_CHECK(gate.isfinite().all().item<bool>(), FeedForwardCall::kOperation, "finite gates",
                "NaN or infinity");
  return gate;
}

}  // namespace

std::vector<SampleGroup> sample_groups(const FeedForwardProblem& problem, bool equal_gates) {
  const int64_t batch = problem.x.size(0);
  const at::Tensor gate = gate_on_cpu(problem);
  if (!gate.defined() || gate.dim() == 1) {
    SampleGroup all = make_group(problem, gate.defined() ? gate.const_data_ptr<float>() : nullptr);
    all.samples.resize(batch);
    std::iota(all.samples.begin(), all.samples.end(), 0);
    return {std::move(all)};
  }
  std::vector<SampleGroup> groups;
  std::map<std::vector<float>, size_t> known;
  for (int64_t b = 0; b < batch; ++b) {
    const float* row = gate.const_data_ptr<float>() + b * problem.blocks;
    std::vector<float> key(row, row + problem.blocks);
    if (!equal_gates) {
      for (float& value : key) value = !problem.skip || value != 0.0f ? 1.0f : 0.0f;
    }
    const auto [place, is_new] = known.emplace(std::move(key), groups.size());
    if (is_new) groups.push_back(make_group(problem, row));
    groups[place->second].samples.push_back(b);
  }
  return groups;
}

}  // namespace headkit
