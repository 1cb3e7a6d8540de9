#include "headkit/gates/policy_runner.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "core/sha256.h"
#include "headkit/core/error.h"
#include "headkit/explain/decision_record.h"
#include "headkit/gates/calibrated_policy.h"
#include "headkit/gates/pooled_state.h"
#include "headkit/scorers/agreement.h"

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
  bool told = false;
  whole.records.resize(static_cast<size_t>(samples));
  for (const auto& [rows, part] : parts) {
    merge(whole.output, part.output, rows, samples);
    merge(whole.gates.heads, part.gates.heads, rows, samples);
    merge(whole.heads_run, part.heads_run, rows, samples);
    merge(whole.kv_heads_run, part.kv_heads_run, rows, samples);
    merge(whole.layers_run, part.layers_run, rows, samples);
    merge(whole.neurons_run, part.neurons_run, rows, samples);
    if (part.decision_flops.defined()) {
      if (!whole.decision_flops.defined()) {
        whole.decision_flops = at::zeros({samples}, at::TensorOptions(at::kDouble));
      }
      whole.decision_flops.index_copy_(0, rows, part.decision_flops);
    }
    if (blocks.defined()) {
      const at::Tensor all_open = at::ones_like(blocks).slice(0, 0, 1);
      merge(whole.gates.blocks,
            part.gates.blocks.defined()
                ? part.gates.blocks
                : all_open.expand({rows.size(0), blocks.size(1), blocks.size(2)}),
            rows, samples);
    }
    for (size_t i = 0; i < part.records.size(); ++i) {
      const int64_t row = rows[static_cast<int64_t>(i)].item<int64_t>();
      whole.records[static_cast<size_t>(row)] = part.records[i];
      told = true;
    }
  }
  if (!told) whole.records.clear();
  return whole;
}

// The heads of one request that are toggled: by a hash, so independent of the decision but for
// whether they ran.
std::vector<AuditToggle> chosen_toggles(const at::Tensor& gates, const HeadMask& present,
                                        const std::string& request_id, const std::string& salt,
                                        int64_t count) {
  std::vector<std::pair<std::string, AuditToggle>> ran, closed;
  const at::Tensor open = gates.to(at::kCPU, at::kDouble).contiguous();
  for (int64_t l = 0; l < present.layers(); ++l) {
    for (int64_t h = 0; h < present.heads(); ++h) {
      if (!present.contains({l, h})) continue;
      AuditToggle one{.head = {l, h},
                      .ran = open.const_data_ptr<double>()[l * present.heads() + h] != 0};
      (one.ran ? ran : closed)
          .emplace_back(sha256_hex(salt + '\n' + request_id + '\n' + std::to_string(l) + '.' +
                                   std::to_string(h)),
                        one);
    }
  }
  std::vector<AuditToggle> chosen;
  for (auto* side : {&ran, &closed}) {
    std::sort(side->begin(), side->end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t i = 0; i < std::min(side->size(), static_cast<size_t>(count)); ++i) {
      chosen.push_back((*side)[i].second);
    }
  }
  return chosen;
}

}  // namespace

double toggle_correlation(const std::vector<AuditToggle>& toggles) {
  std::vector<double> logits, worth;
  for (const AuditToggle& each : toggles) {
    if (!each.logit) continue;
    logits.push_back(*each.logit);
    worth.push_back(each.ran ? each.change : -each.change);
  }
  if (logits.size() < 2) return std::numeric_limits<double>::quiet_NaN();
  return spearman(logits, worth);
}

PolicyRunner::PolicyRunner(PolicyRunnerSettings settings) : settings_(std::move(settings)) {
  HEADKIT_CHECK(settings_.policy != nullptr, kOperation, "a policy", "none");
  HEADKIT_CHECK(settings_.audit_toggles >= 0, kOperation, "0 or more toggles of an audited request",
                settings_.audit_toggles);
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

// Which samples lie beyond the limit, by their embeddings.
void PolicyRunner::judge(GatedModel& model, const Batch& batch, GovernedRun& result) const {
  result.full = at::zeros({batch_size(batch)}, at::kBool);
  if (!settings_.ood) return;
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

// Runs the samples beyond the limit at lambda 1, the others as the policy decides.
void PolicyRunner::decide(GatedModel& model, const Batch& batch, int64_t first_input,
                          GovernedRun& result) {
  const int64_t samples = batch_size(batch);
  const RunOptions options{.record = settings_.records != nullptr || toggles(),
                           .first_input = first_input,
                           .weights_sha256 = settings_.weights_sha256};
  std::vector<std::pair<at::Tensor, PolicyRun>> parts;
  const auto run_rows = [&](const at::Tensor& rows, double lambda) {
    const bool all = rows.size(0) == samples;
    parts.emplace_back(rows, run_policy(model, all ? batch : select_examples(batch, rows),
                                        *policy_at(lambda), options));
  };
  const at::Tensor usual = rows_true(result.full.logical_not()), far = rows_true(result.full);
  if (usual.size(0) > 0 || far.size(0) == 0) run_rows(usual, result.lambda);
  if (far.size(0) > 0) run_rows(far, 1);
  result.run = parts.size() == 1 ? std::move(parts.front().second) : merged(parts, samples);
  for (size_t b = 0; b < result.run.records.size(); ++b) {
    result.run.records[b].input = first_input + static_cast<int64_t>(b);
  }
}

// Runs the chosen requests in full as well and notes what they lost.
void PolicyRunner::audit(GatedModel& model, const Batch& batch,
                         const std::vector<std::string>& request_ids, GovernedRun& result) {
  std::vector<int64_t> chosen;
  for (size_t b = 0; b < request_ids.size(); ++b) {
    if (settings_.audit->chosen(request_ids[b])) chosen.push_back(static_cast<int64_t>(b));
  }
  result.audit_loss = at::full({batch_size(batch)}, std::numeric_limits<double>::quiet_NaN(),
                               at::TensorOptions(at::kDouble));
  if (chosen.empty()) return;
  const at::Tensor rows = at::tensor(chosen, at::kLong);
  const Batch some = select_examples(batch, rows);
  const PolicyRun full = run_policy(model, some, *policy_at(1));
  const at::Tensor loss = settings_.audit_loss(
      result.run.output.index_select(0, rows.to(result.run.output.device())), full.output, some);
  result.audit_loss.index_copy_(0, rows, loss);
  for (int64_t i = 0; i < loss.size(0); ++i) settings_.audit->observe(loss[i].item<double>());
  if (toggles()) toggle(model, some, rows, request_ids, full.output, result);
}

// Of each audited request, some heads toggled one by one. `some`, `full_output`: of `rows` alone.
void PolicyRunner::toggle(GatedModel& model, const Batch& some, const at::Tensor& rows,
                          const std::vector<std::string>& request_ids,
                          const at::Tensor& full_output, GovernedRun& result) const {
  const HeadMask present = model.heads();
  for (int64_t i = 0; i < rows.size(0); ++i) {
    const int64_t row = rows[i].item<int64_t>();
    const at::Tensor place = at::tensor({i}, at::kLong);
    const Batch one = select_examples(some, place);
    const at::Tensor full = full_output.index_select(0, place.to(full_output.device()));
    GateSet gates = result.run.gates.heads.dim() == 3
                        ? result.run.gates.select_samples(at::tensor({row}, at::kLong))
                        : result.run.gates;
    gates.heads = gates.heads.reshape({1, present.layers(), present.heads()});
    const auto loss = [&](const GateSet& under) {
      return settings_.audit_loss(model(one, under), full, one)[0].item<double>();
    };
    const double before = loss(gates);
    for (AuditToggle& each :
         chosen_toggles(gates.heads[0], present, request_ids[static_cast<size_t>(row)],
                        settings_.audit->options().salt, settings_.audit_toggles)) {
      GateSet toggled = gates;
      toggled.heads = gates.heads.clone();
      toggled.heads[0][each.head.layer][each.head.head] = each.ran ? 0 : 1;
      each.row = row;
      each.change = loss(toggled) - before;
      if (!result.run.records.empty()) {
        for (const HeadDecision& decision : result.run.records[static_cast<size_t>(row)].heads) {
          if (decision.layer == each.head.layer && decision.head == each.head.head) {
            each.logit = decision.logit;
          }
        }
      }
      result.toggles.push_back(each);
    }
  }
}

// Mean of a sample in the controller's unit; without one in heads.
double PolicyRunner::cost(GatedModel& model, const Batch& batch, const PolicyRun& run,
                          double seconds) {
  const auto samples = static_cast<double>(batch_size(batch));
  const std::string unit = settings_.controller ? settings_.controller->options().unit : "heads";
  if (unit == "heads") return run.heads_run.to(at::kDouble).mean().item<double>();
  if (unit == "flops") {
    return run_flops(model.layout(), run, batch_tokens(model, batch)).mean().item<double>();
  }
  if (unit == "milliseconds") return seconds * kMilli / samples;
  const std::lock_guard lock(mutex_);
  return energy_->joules() / samples;
}

// Adds what the runner knows to the records and writes them.
void PolicyRunner::tell(const std::vector<std::string>& request_ids, bool stepped,
                        GovernedRun& result) const {
  for (size_t b = 0; b < result.run.records.size(); ++b) {
    const auto row = static_cast<int64_t>(b);
    DecisionRecord& one = result.run.records[b];
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
  }
  settings_.records->write(write_decision_records(result.run.records));
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
  const c10::NoGradGuard no_grad;
  const double start = now();
  GovernedRun result;
  const double wanted = settings_.controller ? settings_.controller->lambda() : settings_.lambda;
  result.lambda = settings_.audit ? settings_.audit->lambda(wanted, grid_) : wanted;
  judge(model, batch, result);
  decide(model, batch, first_input, result);
  if (settings_.audit) audit(model, batch, request_ids, result);
  if (samples > 0) {
    result.cost = cost(model, batch, result.run, now() - start);
    if (settings_.controller) settings_.controller->observe(result.cost);
  }
  result.budget_unmet = settings_.controller && settings_.controller->state().unmet;
  if (settings_.records) tell(request_ids, result.lambda > wanted, result);
  return result;
}

}  // namespace headkit
