#include "headkit/gates/calibrated_policy.h"

#include <utility>

#include "gates/policy_json.h"
#include "headkit/core/error.h"
#include "headkit/explain/decision_record.h"

namespace headkit {
namespace {

constexpr auto kOperation = "calibrated";

std::string with_promise(const std::string& lines, const Calibration& calibration, double lambda) {
  std::string told;
  for (DecisionRecord& record : read_decision_records(lines)) {
    record.calibration = calibration.id();
    record.risk_bound = calibration.risk;
    record.lambda = lambda;
    told += record.to_json() + "\n";
  }
  return told;
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

GateSet CalibratedPolicy::decide(const GateInput& input, State& state) const {
  const std::string before = std::exchange(state.records, {});
  GateSet gates = current_->decide(input, state);
  state.records = before + with_promise(state.records, calibration_, lambda_);
  return gates;
}

std::vector<GatePolicy::Part> CalibratedPolicy::decide_parts(const GateInput& input,
                                                             State& state) const {
  const std::string before = std::exchange(state.records, {});
  std::vector<Part> parts = current_->decide_parts(input, state);
  state.records = before + with_promise(state.records, calibration_, lambda_);
  return parts;
}

std::shared_ptr<GatePolicy> CalibratedPolicy::at(double lambda) const {
  return std::make_shared<CalibratedPolicy>(policy_, calibration_, lambda);
}

std::vector<PolicyRun> CalibratedPolicy::sweep(GatedModel& model, const Batch& batch,
                                               const std::vector<double>& lambdas) const {
  std::vector<double> applied;
  for (const double lambda : lambdas) applied.push_back(calibration_.at_least(lambda));
  return policy_->sweep(model, batch, applied);
}

PolicyRun CalibratedPolicy::run(GatedModel& model, const Batch& batch,
                                const RunOptions& options) const {
  PolicyRun run = run_policy(model, batch, *current_, options);
  run.records = with_promise(run.records, calibration_, lambda_);
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
