#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "headkit/explain/record_file.h"
#include "headkit/gates/budget_controller.h"
#include "headkit/gates/energy_meter.h"
#include "headkit/gates/ood_score.h"
#include "headkit/gates/output_loss.h"
#include "headkit/gates/shadow_audit.h"

namespace headkit {

/// What a policy is run with. All but the policy may be left out.
struct PolicyRunnerSettings {
  std::shared_ptr<const AdjustablePolicy> policy;  ///< required
  double lambda = 0;  ///< without a controller; a calibrated policy brings
                      ///< it up to its floor
  std::shared_ptr<BudgetController> controller;  ///< sets lambda, batch by batch
  std::shared_ptr<ShadowAudit> audit;            ///< with a controller or lambda that it may raise
  OutputLoss audit_loss = make_output_loss("flip");  ///< of audited requests
  /// Of each audited request so many heads that ran and so many that did not, chosen by a hash of
  /// its id, are toggled one by one; >= 0. Each costs a run of that request.
  int64_t audit_toggles = 0;
  std::shared_ptr<const OodScore> ood;  ///< inputs beyond its limit run at lambda 1, each by itself
  std::shared_ptr<RecordFile> records;  ///< gets the decision records, batch by batch
  std::string weights_sha256;           ///< for the records
};

/// What one head of an audited request was worth: leave-one-out, or add-one-in, of the decision.
struct AuditToggle {
  int64_t row = 0;  ///< in the batch
  HeadId head;
  bool ran = false;  ///< toggled off; else on
  /// Loss of the toggled gates minus loss of the gates as they were, both run anew, so that what
  /// closed heads add is the same: > 0 where the decision was right.
  double change = 0;
  std::optional<double> logit = {};  ///< of the decision, where the policy records one
};

/// A batch under a runner.
struct GovernedRun {
  PolicyRun run;
  double lambda = 1;      ///< of the batch; inputs out of distribution ran at 1
  double cost = 0;        ///< mean of a sample in the controller's unit; without one in heads
  at::Tensor full;        ///< bool [B]: ran at lambda 1 because it is out of distribution
  at::Tensor ood_score;   ///< double [B]; undefined without a score
  at::Tensor audit_loss;  ///< double [B]; NaN where not audited; undefined without an audit
  std::vector<AuditToggle> toggles;  ///< of the audited requests, by row
  bool budget_unmet = false;
};

/// Rank correlation (Spearman) of the heads' logits with what they were worth, over toggles of one
/// or many runs: of a head that ran its change, of one that did not its negative change. NaN where
/// fewer than two toggles have logits or all are tied.
double toggle_correlation(const std::vector<AuditToggle>& toggles);

/// Runs batches under a policy whose lambda a controller steers and an audit watches. Settings do
/// not change; all state is in the controller, the audit and the record file, so that one runner
/// serves many threads (of models that do).
class PolicyRunner {
 public:
  /// Throws std::invalid_argument without a policy, std::runtime_error for joules on a machine that
  /// does not tell them.
  explicit PolicyRunner(PolicyRunnerSettings settings);

  /// `request_ids`: one for each example, for audit and records; empty = counted from 0. What the
  /// audit costs is part of measured milliseconds and joules, not of heads and FLOPs. Throws
  /// std::invalid_argument for a model that the policy was not made for.
  GovernedRun run(GatedModel& model, const Batch& batch, std::vector<std::string> request_ids = {});
  const PolicyRunnerSettings& settings() const { return settings_; }

 private:
  std::shared_ptr<const GatePolicy> policy_at(double lambda);
  void judge(GatedModel& model, const Batch& batch, GovernedRun& result) const;
  void decide(GatedModel& model, const Batch& batch, int64_t first_input, GovernedRun& result);
  void audit(GatedModel& model, const Batch& batch, const std::vector<std::string>& request_ids,
             GovernedRun& result);
  void toggle(GatedModel& model, const Batch& some, const at::Tensor& rows,
              const std::vector<std::string>& request_ids, const at::Tensor& full_output,
              GovernedRun& result) const;
  bool toggles() const { return settings_.audit != nullptr && settings_.audit_toggles > 0; }
  double cost(GatedModel& model, const Batch& batch, const PolicyRun& run, double seconds);
  void tell(const std::vector<std::string>& request_ids, bool stepped, GovernedRun& result) const;

  PolicyRunnerSettings settings_;
  std::vector<double> grid_;
  std::optional<EnergyMeter> energy_;
  std::mutex mutex_;  // of all that follows and energy_
  std::map<double, std::shared_ptr<const GatePolicy>> by_lambda_;
  std::atomic<int64_t> next_input_{0};
};

}  // namespace headkit
