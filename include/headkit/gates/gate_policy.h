#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "headkit/core/gate_set.h"
#include "headkit/explain/decision_record.h"
#include "headkit/models/batch.h"

namespace headkit {

class GatedModel;
struct PolicyRun;
struct RunOptions;

/// What a policy sees when it is asked before layer `layer`.
struct GateInput {
  int64_t layer = 0;
  at::Tensor hidden;          ///< [B, T, D], the input of that layer
  at::Tensor attention_mask;  ///< bool [B, T] or undefined
  /// What runs under the decision, for policies that look at weights; null = unknown.
  GatedModel* model = nullptr;
};

/// Decides at run time which heads run for each input. Holds settings only; what changes from call
/// to call lives in a State.
class GatePolicy {
 public:
  /// What changes from call to call.
  struct State {
    virtual ~State() = default;
    bool record = false;                    ///< set it to get `records`
    std::vector<DecisionRecord> records{};  ///< one an input, appended
    int64_t next_input = 0;      ///< number of the next input, for the records; counts on
    HeadLayout layout;           ///< of the model, for the records' FLOPs; zeros = unknown
    HeadMask present;            ///< heads physically there; empty = all
    std::string weights_sha256;  ///< for the records; empty = unknown
    double neurons = -1;         ///< of all feed-forward blocks; < 0 = as many as in the layout
    /// What deciding cost so far where it is more than pooled features, in FLOPs: double [B];
    /// undefined = 0.
    at::Tensor decision_flops{};
  };
  /// Some samples of a batch and the gates that they share.
  struct Part {
    at::Tensor samples;  ///< int64 [n], places in the batch
    GateSet gates;       ///< [n, L, H] or [L, H]
  };

  virtual ~GatePolicy() = default;
  virtual std::string name() const = 0;
  /// Throws std::invalid_argument if the policy was made for another model than this one: for
  /// whoever runs it. By default a policy does not know its model.
  virtual void check_model(GatedModel& /*model*/) const {}
  virtual std::unique_ptr<State> start() const { return std::make_unique<State>(); }
  /// Gates for layers >= input.layer, [B, L, H] in original indices; earlier layers are ignored. A
  /// decision depends on the sample alone, never on its neighbours in the batch. Throws
  /// std::invalid_argument for a policy that needs outputs, not hidden states, to decide
  /// (escalation): `run_policy` serves those and all others.
  virtual GateSet decide(const GateInput& input, State& state) const = 0;
  /// The same in parts, for policies whose closed heads or blocks add different things for
  /// different samples; together the parts hold each sample once. Default: one part.
  virtual std::vector<Part> decide_parts(const GateInput& input, State& state) const;
  /// Layers before which the policy is asked, ascending, the first 0. What it says holds up to the
  /// next.
  virtual std::vector<int64_t> decision_layers() const { return {0}; }
  /// Runs a batch: embeds it, asks before each decision layer and runs on. Nothing is run twice,
  /// unless a policy that overrides it says so. Gates are in original indices; heads that are
  /// physically gone do not run or count.
  virtual PolicyRun run(GatedModel& model, const Batch& batch, const RunOptions& options) const;
  /// {"policy": name, "version": 1, ...}: everything that `policy_from_json` needs, bit for bit.
  virtual std::string to_json() const = 0;
};

/// What the registry tells of a policy.
struct PolicyInfo {
  std::string name;
  std::string definition;
  std::string source;
  std::string cost;     ///< what a decision costs
  std::string needs;    ///< data for fitting and calibration
  std::string decides;  ///< "before layer 0" or "after the output": usable as gates, or a driver
};
const std::vector<PolicyInfo>& policies();
/// The policy that `to_json` wrote. Throws std::invalid_argument for unknown names (naming the
/// known ones), newer versions and settings that do not fit together.
std::shared_ptr<GatePolicy> policy_from_json(const std::string& text);

}  // namespace headkit
