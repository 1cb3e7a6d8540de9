#include "headkit/gates/policy_trace.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <array>

#include "core/sha256.h"
#include "distributed/measured_walk.h"
#include "gates/early_record.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "trace_policy";
constexpr int64_t kDefaultSteps = 16;

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
  const at::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  trace.model = model.fingerprint();
  trace.data = data_fingerprint(data);
  // Losses, heads and FLOPs [n, grid], drift, tokens and task [n].
  const auto measure = [&](const Batch& given, int64_t) -> Measured {
    Batch batch = given;
    const int64_t count = batch_size(given);
    at::Tensor task = at::zeros({count}, at::kLong);
    if (!options.task_field.empty()) {
      HEADKIT_CHECK(batch.count(options.task_field) > 0, kOperation,
                    "batches with an entry '" + options.task_field + "'", "one without");
      const at::Tensor given_task = batch.at(options.task_field);
      HEADKIT_CHECK(given_task.dim() == 1 && !given_task.is_floating_point(), kOperation,
                    "whole numbers of shape [batch] as '" + options.task_field + "'",
                    given_task.scalar_type(), " of shape ", given_task.sizes());
      task = given_task.to(at::kCPU, at::kLong);
      batch.erase(options.task_field);
    }
    const std::vector<PolicyRun> runs = policy.sweep(model, batch, trace.grid);
    const at::Tensor full = runs.back().output;
    const at::Tensor tokens = batch_tokens(model, batch);
    std::vector<at::Tensor> losses, heads, flops;
    for (size_t j = 0; j < points; ++j) {
      losses.push_back(j + 1 < points ? loss(runs[j].output, full, batch)
                                      : at::zeros({count}, at::kDouble));
      heads.push_back(runs[j].heads_run.to(at::kDouble));
      flops.push_back(run_flops(layout, runs[j], tokens));
    }
    return {at::stack(losses, 1),
            at::stack(heads, 1),
            at::stack(flops, 1),
            loss(full, model(batch), batch),
            tokens,
            task};
  };
  std::array<std::vector<at::Tensor>, 6> parts;
  const int64_t examples = for_each_measured(kOperation, data, options.progress, measure,
                                             [&](const Batch&, const Measured& measured) {
                                               for (size_t i = 0; i < parts.size(); ++i)
                                                 parts[i].push_back(measured[i]);
                                             });
  HEADKIT_CHECK(examples > 0, kOperation, "examples", "none");
  at::Tensor PolicyTrace::*const rows[] = {&PolicyTrace::losses, &PolicyTrace::heads_run,
                                           &PolicyTrace::flops,  &PolicyTrace::drift,
                                           &PolicyTrace::tokens, &PolicyTrace::task};
  for (size_t i = 0; i < parts.size(); ++i) trace.*rows[i] = at::cat(parts[i]);
  return trace;
}

}  // namespace headkit
