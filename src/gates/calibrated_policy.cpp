#include "headkit/gates/calibrated_policy.h"

#include <utility>

#include "gates/policy_json.h"
#include "headkit/core/error.h"
#include "headkit/explain/decision_record.h"

namespace headkit {
namespace {

constexpr auto kOperation = "calibrated";

// Tells the promise in all records from the one at `first` on.
void tell_promise(std::vector<DecisionRecord>& records, size_t first,
                  const Calibration& calibration, double lambda) {
  if (first == records.size()) return;
  const std::string id = calibration.id();
  for (size_t i = first; i < records.size(); ++i) {
    records[i].calibration = id;
    records[i].risk_bound = calibration.risk;
    records[i].lambda = lambda;
  }
}

}  // namespace

CalibratedPolicy::CalibratedPolicy(std::shared_ptr<const AdjustablePolicy> policy,
                                   Calibration calibration, double lambda)
    : policy_(std::move(policy)), calibration_(std::move(calibration)) {
  HEADKIT_CHECK(policy_ != nullptr, kOperation, "a policy", "none");
  HEADKIT_CHECK(dynamic_cast<const CalibratedPolicy*>(policy_.get()) == nullptr, kOperation,
                "a policy without a calibration", "one that has one");
  calibration_.check_policy(*policy_);
  lambda_ = calibration_.at_least(lambda);
  current_ = policy_->at(lambda_);
}

void CalibratedPolicy::check_model(GatedModel& model) const {
  policy_->check_model(model);
  calibration_.check_model(model);
}

GateSet CalibratedPolicy::decide(const GateInput& input, State& state) const {
  const size_t before = state.records.size();
  GateSet gates = current_->decide(input, state);
  tell_promise(state.records, before, calibration_, lambda_);
  return gates;
}

std::vector<GatePolicy::Part> CalibratedPolicy::decide_parts(const GateInput& input,
                                                             State& state) const {
  const size_t before = state.records.size();
  std::vector<Part> parts = current_->decide_parts(input, state);
  tell_promise(state.records, before, calibration_, lambda_);
  return parts;
}

std::shared_ptr<GatePolicy> CalibratedPolicy::at(double lambda) const {
  return std::make_shared<CalibratedPolicy>(policy_, calibration_, lambda);
}

std::vector<PolicyRun> CalibratedPolicy::sweep(GatedModel& model, const Batch& batch,
                                               const std::vector<double>& lambdas) const {
  check_model(model);
  std::vector<double> applied;
  for (const double lambda : lambdas) applied.push_back(calibration_.at_least(lambda));
  return policy_->sweep(model, batch, applied);
}

PolicyRun CalibratedPolicy::run(GatedModel& model, const Batch& batch,
                                const RunOptions& options) const {
  check_model(model);
  PolicyRun run = run_policy(model, batch, *current_, options);
  tell_promise(run.records, 0, calibration_, lambda_);
  return run;
}

std::string CalibratedPolicy::to_json() const {
  Json json = policy_json("calibrated");
  json["of"] = parse_json(kOperation, policy_->to_json());
  json["calibration"] = parse_json(kOperation, calibration_.to_json());
  json["lambda"] = lambda_;
  return json.dump();
}

std::shared_ptr<CalibratedPolicy> CalibratedPolicy::from_json(const std::string& text) {
  const Json json = read_policy_json("calibrated", text);
  const std::shared_ptr<GatePolicy> of = policy_from_json(member(kOperation, json, "of").dump());
  auto adjustable = std::dynamic_pointer_cast<AdjustablePolicy>(of);
  HEADKIT_CHECK(adjustable != nullptr, kOperation, "a policy with a lambda", of->name());
  return std::make_shared<CalibratedPolicy>(
      std::move(adjustable), Calibration::from_json(member(kOperation, json, "calibration").dump()),
      number_member(kOperation, json, "lambda"));
}

}  // namespace headkit
