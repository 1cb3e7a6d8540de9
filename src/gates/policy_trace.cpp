#include "headkit/gates/policy_trace.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "core/sha256.h"
#include "gates/early_record.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "trace_policy";
constexpr int64_t kDefaultSteps = 16;

at::Tensor by_grid(const std::vector<std::vector<at::Tensor>>& columns) {
  std::vector<at::Tensor> joined;
  for (const auto& batches : columns) joined.push_back(at::cat(batches));
  return at::stack(joined, 1);
}

}  // namespace

PolicyTrace PolicyTrace::select(const at::Tensor& index) const {
  PolicyTrace some = *this;
  for (at::Tensor PolicyTrace::*rows :
       {&PolicyTrace::losses, &PolicyTrace::heads_run, &PolicyTrace::flops, &PolicyTrace::drift,
        &PolicyTrace::tokens, &PolicyTrace::task}) {
    some.*rows = (this->*rows).index_select(0, index);
  }
  some.data.clear();
  return some;
}

std::vector<double> checked_grid(const char* operation, std::vector<double> grid) {
  if (grid.empty()) {
    for (int64_t i = 0; i <= kDefaultSteps; ++i) {
      grid.push_back(static_cast<double>(i) / static_cast<double>(kDefaultSteps));
    }
  }
  bool ascends = grid.front() >= 0 && grid.back() == 1;
  for (size_t i = 1; i < grid.size(); ++i) ascends = ascends && grid[i - 1] < grid[i];
  HEADKIT_CHECK(ascends, operation, "a grid that ascends from 0 or more to 1", c10::str(grid));
  return grid;
}

std::string policy_fingerprint(const AdjustablePolicy& policy) {
  return sha256_hex(policy.at(0.5)->to_json());
}

std::string data_fingerprint(const DataSource& data) {
  Sha256 sum;
  data.for_each([&](const Batch& batch) {
    sum.update("batch " + std::to_string(batch.size()) + ";");
    for (const auto& [name, tensor] : batch) {
      const at::Tensor bytes = tensor.detach().cpu().contiguous();
      sum.update(c10::str(name.size(), ":", name, " ", bytes.dtype().name(), " ", bytes.sizes()));
      sum.update(bytes.const_data_ptr(), bytes.nbytes());
    }
  });
  return sum.hex();
}

at::Tensor batch_tokens(GatedModel& model, const Batch& batch) {
  const ModelState state = model.embed(batch);
  return at::tensor(valid_tokens(state.hidden, state.attention_mask), at::kLong);
}

PolicyTrace trace_policy(GatedModel& model, const AdjustablePolicy& policy, const DataSource& data,
                         const OutputLoss& loss, const TraceOptions& options) {
  PolicyTrace trace;
  trace.grid = checked_grid(kOperation, options.grid);
  trace.loss = loss.name;
  trace.bound = loss.bound;
  trace.policy = policy_fingerprint(policy);
  const HeadLayout layout = model.layout();
  const size_t points = trace.grid.size();
  std::vector<std::vector<at::Tensor>> losses(points), heads(points), flops(points);
  std::vector<at::Tensor> drift, tokens, task;
  const at::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  trace.model = model.fingerprint();
  trace.data = data_fingerprint(data);
  const int64_t total = data.size().value_or(-1);
  data.for_each([&](const Batch& given) {
    Batch batch = given;
    const int64_t count = batch_size(given);
    if (count == 0) return;
    if (options.task_field.empty()) {
      task.push_back(at::zeros({count}, at::kLong));
    } else {
      HEADKIT_CHECK(batch.count(options.task_field) > 0, kOperation,
                    "batches with an entry '" + options.task_field + "'", "one without");
      const at::Tensor given_task = batch.at(options.task_field);
      HEADKIT_CHECK(given_task.dim() == 1 && !given_task.is_floating_point(), kOperation,
                    "whole numbers of shape [batch] as '" + options.task_field + "'",
                    given_task.scalar_type(), " of shape ", given_task.sizes());
      task.push_back(given_task.to(at::kCPU, at::kLong));
      batch.erase(options.task_field);
    }
    const std::vector<PolicyRun> runs = policy.sweep(model, batch, trace.grid);
    const at::Tensor full = runs.back().output;
    tokens.push_back(batch_tokens(model, batch));
    for (size_t j = 0; j < points; ++j) {
      losses[j].push_back(j + 1 < points ? loss(runs[j].output, full, batch)
                                         : at::zeros({count}, at::kDouble));
      heads[j].push_back(runs[j].heads_run.to(at::kDouble));
      flops[j].push_back(run_flops(layout, runs[j], tokens.back()));
    }
    drift.push_back(loss(full, model(batch), batch));
    if (options.progress) options.progress(static_cast<int64_t>(tokens.size()), total);
  });
  HEADKIT_CHECK(!tokens.empty(), kOperation, "examples", "none");
  trace.losses = by_grid(losses);
  trace.heads_run = by_grid(heads);
  trace.flops = by_grid(flops);
  trace.drift = at::cat(drift);
  trace.tokens = at::cat(tokens);
  trace.task = at::cat(task);
  return trace;
}

}  // namespace headkit
