#include "headkit/gates/policy_runner.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "headkit/core/error.h"
#include "headkit/explain/decision_record.h"
#include "headkit/gates/calibrated_policy.h"
#include "headkit/gates/pooled_state.h"

namespace headkit {
namespace {

constexpr auto kOperation = "policy_runner";
constexpr double kMilli = 1e3;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

at::Tensor rows_true(const at::Tensor& mask) { return mask.nonzero().flatten(); }

// Two runs of parts of one batch, put together in the order of the batch.
void merge(at::Tensor& whole, const at::Tensor& part, const at::Tensor& rows, int64_t samples) {
  if (!part.defined()) return;
  if (!whole.defined()) {
    std::vector<int64_t> sizes = part.sizes().vec();
    sizes[0] = samples;
    whole = at::empty(sizes, part.options());
  }
  whole.index_copy_(0, rows.to(part.device()), part);
}

PolicyRun merged(const std::vector<std::pair<at::Tensor, PolicyRun>>& parts, int64_t samples) {
  PolicyRun whole;
  whole.gates = parts.front().second.gates;
  whole.gates.heads.reset();
  whole.gates.blocks.reset();
  at::Tensor blocks;
  for (const auto& [rows, part] : parts) {
    if (part.gates.blocks.defined()) blocks = part.gates.blocks;
  }
  std::vector<std::string> lines(static_cast<size_t>(samples));
  for (const auto& [rows, part] : parts) {
    merge(whole.output, part.output, rows, samples);
    merge(whole.gates.heads, part.gates.heads, rows, samples);
    merge(whole.heads_run, part.heads_run, rows, samples);
    merge(whole.kv_heads_run, part.kv_heads_run, rows, samples);
    merge(whole.layers_run, part.layers_run, rows, samples);
    merge(whole.neurons_run, part.neurons_run, rows, samples);
    if (blocks.defined()) {
      const at::Tensor all_open = at::ones_like(blocks).slice(0, 0, 1);
      merge(whole.gates.blocks,
            part.gates.blocks.defined()
                ? part.gates.blocks
                : all_open.expand({rows.size(0), blocks.size(1), blocks.size(2)}),
            rows, samples);
    }
    size_t first = 0;
    for (int64_t i = 0; first < part.records.size(); ++i) {
      const size_t next = part.records.find('\n', first) + 1;
      lines[static_cast<size_t>(rows[i].item<int64_t>())] =
          part.records.substr(first, next - first);
      first = next;
    }
  }
  for (const std::string& line : lines) whole.records += line;
  return whole;
}

}  // namespace

PolicyRunner::PolicyRunner(PolicyRunnerSettings settings) : settings_(std::move(settings)) {
  HEADKIT_CHECK(settings_.policy != nullptr, kOperation, "a policy", "none");
  check_lambda(kOperation, settings_.lambda);
  if (const auto* calibrated = dynamic_cast<const CalibratedPolicy*>(settings_.policy.get())) {
    grid_ = calibrated->calibration().grid;
    settings_.lambda = calibrated->calibration().at_least(settings_.lambda);
    if (settings_.controller) {
      HEADKIT_CHECK(settings_.controller->options().floor >= calibrated->calibration().lambda,
                    kOperation,
                    c10::str("a controller whose floor is at least the calibrated lambda, ",
                             calibrated->calibration().lambda),
                    settings_.controller->options().floor);
    }
  } else {
    grid_ =
        settings_.controller ? settings_.controller->options().grid : checked_grid(kOperation, {});
  }
  if (settings_.controller && settings_.controller->options().unit == "joules") energy_.emplace();
}

std::shared_ptr<const GatePolicy> PolicyRunner::policy_at(double lambda) {
  const std::lock_guard lock(mutex_);
  std::shared_ptr<const GatePolicy>& policy = by_lambda_[lambda];
  if (!policy) policy = settings_.policy->at(lambda);
  return policy;
}

void PolicyRunner::check_model(GatedModel& model) {
  const auto* calibrated = dynamic_cast<const CalibratedPolicy*>(settings_.policy.get());
  if (calibrated == nullptr) return;
  const std::lock_guard lock(mutex_);
  if (checked_ == &model) return;
  calibrated->calibration().check_model(model);
  checked_ = &model;
}

GovernedRun PolicyRunner::run(GatedModel& model, const Batch& batch,
                              std::vector<std::string> request_ids) {
  const int64_t samples = batch_size(batch);
  HEADKIT_CHECK(request_ids.empty() || static_cast<int64_t>(request_ids.size()) == samples,
                kOperation, c10::str(samples, " request ids"), request_ids.size());
  const int64_t first_input = next_input_.fetch_add(samples);
  if (request_ids.empty()) {
    for (int64_t b = 0; b < samples; ++b) request_ids.push_back(std::to_string(first_input + b));
  }
  check_model(model);
  const c10::NoGradGuard no_grad;
  const double start = now();
  GovernedRun result;
  result.lambda = settings_.controller ? settings_.controller->lambda() : settings_.lambda;
  bool stepped = false;
  if (settings_.audit) {
    const double raised = settings_.audit->lambda(result.lambda, grid_);
    stepped = raised > result.lambda;
    result.lambda = raised;
  }
  result.full = at::zeros({samples}, at::kBool);
  if (settings_.ood) {
    const ModelState state = model.embed(batch);
    // What is not finite is far from everything.
    const at::Tensor broken =
        state.hidden.isfinite().flatten(1).all(1).logical_not().to(at::kCPU, at::kBool);
    const at::Tensor features =
        pooled_state(kOperation, state.hidden.nan_to_num(0, 0, 0), state.attention_mask);
    result.ood_score =
        (*settings_.ood)(features).masked_fill(broken, std::numeric_limits<double>::infinity());
    result.full = result.ood_score > settings_.ood->limit();
  }
  const bool record = settings_.records != nullptr;
  const auto run_rows = [&](const at::Tensor& rows, double lambda) {
    RunOptions options;
    options.record = record;
    options.first_input = first_input;
    options.weights_sha256 = settings_.weights_sha256;
    return std::pair{
        rows, run_policy(model, rows.size(0) == samples ? batch : select_examples(batch, rows),
                         *policy_at(lambda), options)};
  };
  std::vector<std::pair<at::Tensor, PolicyRun>> parts;
  const at::Tensor usual = rows_true(result.full.logical_not()), far = rows_true(result.full);
  if (usual.size(0) > 0 || far.size(0) == 0) parts.push_back(run_rows(usual, result.lambda));
  if (far.size(0) > 0) parts.push_back(run_rows(far, 1));
  result.run = parts.size() == 1 ? std::move(parts.front().second) : merged(parts, samples);

  if (settings_.audit) {
    std::vector<int64_t> audited;
    for (int64_t b = 0; b < samples; ++b) {
      if (settings_.audit->chosen(request_ids[static_cast<size_t>(b)])) audited.push_back(b);
    }
    result.audit_loss = at::full({samples}, std::numeric_limits<double>::quiet_NaN(), at::kDouble);
    if (!audited.empty()) {
      const at::Tensor rows = at::tensor(audited, at::kLong);
      const Batch some = select_examples(batch, rows);
      const PolicyRun full = run_policy(model, some, *policy_at(1));
      const at::Tensor loss = settings_.audit_loss(
          result.run.output.index_select(0, rows.to(result.run.output.device())), full.output,
          some);
      result.audit_loss.index_copy_(0, rows, loss);
      for (int64_t i = 0; i < loss.size(0); ++i) settings_.audit->observe(loss[i].item<double>());
    }
  }

  const std::string unit = settings_.controller ? settings_.controller->options().unit : "heads";
  if (samples > 0) {
    const auto count = static_cast<double>(samples);
    if (unit == "heads") {
      result.cost = result.run.heads_run.to(at::kDouble).mean().item<double>();
    } else if (unit == "flops") {
      result.cost =
          run_flops(model.layout(), result.run, batch_tokens(model, batch)).mean().item<double>();
    } else if (unit == "milliseconds") {
      result.cost = (now() - start) * kMilli / count;
    } else {
      const std::lock_guard lock(mutex_);
      result.cost = energy_->joules() / count;
    }
    if (settings_.controller) settings_.controller->observe(result.cost);
  }
  result.budget_unmet = settings_.controller && settings_.controller->state().unmet;

  if (record && !result.run.records.empty()) {
    std::string told;
    std::vector<DecisionRecord> records = read_decision_records(result.run.records);
    for (size_t b = 0; b < records.size(); ++b) {
      const auto row = static_cast<int64_t>(b);
      DecisionRecord& one = records[b];
      one.input = first_input + row;
      one.request_id = request_ids[b];
      const bool far_off = result.full[row].item<bool>();
      one.lambda = far_off ? 1 : result.lambda;
      if (far_off || stepped) one.mode = "fallback";
      if (settings_.controller) one.budget_unmet = result.budget_unmet;
      if (result.ood_score.defined()) {
        const double score = result.ood_score[row].item<double>();
        if (std::isfinite(score)) one.ood_score = score;
      }
      if (result.audit_loss.defined()) {
        const double loss = result.audit_loss[row].item<double>();
        if (!std::isnan(loss)) one.audit_loss = loss;
      }
      told += one.to_json() + "\n";
    }
    result.run.records = told;
    settings_.records->write(told);
  }
  return result;
}

}  // namespace headkit
