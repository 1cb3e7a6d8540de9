#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "headkit/explain/decision_record.h"
#include "headkit/explain/record_details.h"
#include "headkit/gates/gate_policy.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// Settings of `explain_decisions`.
struct DecisionExplanation {
  int64_t listed_parts = 8;  ///< by feature, and by token and feature; the others are summed up
  /// Double [L, H] of `logit_spread`; undefined = no standardised margins.
  at::Tensor logit_spread{};
  /// For so many closest decisions with a flip, its tokens are also taken out of the model's input:
  /// a run each. < 0 = for all.
  int64_t removals = 8;
  int64_t first_input = 0;       ///< number of the first example
  std::string weights_sha256{};  ///< empty = it is computed
  RecordDetails about{};         ///< what is known of all examples: model, device, seeds ...
  /// What the tokens of each example show, in the order of the padded input: raw content, by
  /// opt-in.
  std::vector<std::vector<InputUnit>> units{};
};

/// Runs a batch under a policy and tells why each head is open or closed: a record an example with
/// logits taken apart, margins, ranks, rivals and verified flips (gate_decomposition.h), and the
/// identities of model, policy, calibration and input.
///
/// Policies without linear logits (linear_logits.h) get their records and identities, and no
/// reasons. Cost: a run, the states before each layer that decides again, and `removals` runs.
/// Changes nothing that is passed in. Throws std::invalid_argument where shapes do not fit.
std::vector<DecisionRecord> explain_decisions(GatedModel& model, const Batch& batch,
                                              const GatePolicy& policy,
                                              const DecisionExplanation& options = {});

/// Standard deviation of each logit over the examples of `data`, run under the policy: double
/// [L, H], 0 for heads without a linear logit. Throws std::invalid_argument for fewer than two
/// examples and for policies without linear logits.
at::Tensor logit_spread(GatedModel& model, const DataSource& data, const GatePolicy& policy);

/// Identity of one example, whatever it was padded with: SHA-256 over names, dtypes, shapes and
/// bytes of its tensors, those by token cut to its valid tokens. Labels and the padding mask do not
/// count. `valid`: bool [T].
std::string example_fingerprint(const Batch& batch, int64_t example, const at::Tensor& valid);

}  // namespace headkit
