#pragma once

#include "headkit/gates/gate_policy.h"
#include "headkit/models/gated_model.h"

namespace headkit {

struct RedecidedRun {
  at::Tensor output;  ///< as `head` gives it
  /// What ran. What closed heads add is whole for one sample only: it may differ between them.
  GateSet gates;
};

/// Runs samples from `start` on, under `gates` up to the next layer before which `policy` decides,
/// then under what it says. With `ask`, it is asked before the layer of `start` already. Without
/// gradients. Throws as GatePolicy::decide.
RedecidedRun run_redecided(GatedModel& model, const GatePolicy& policy, GatePolicy::State& state,
                           const ModelState& start, const GateSet& gates, bool ask);

/// What a policy starts from for a model, as GatePolicy::run makes it.
std::unique_ptr<GatePolicy::State> policy_state(GatedModel& model, const GatePolicy& policy);

}  // namespace headkit
