#pragma once

#include <string>

#include "headkit/gates/gate_policy.h"
#include "headkit/models/gated_model.h"

namespace headkit {

struct RunOptions {
  bool record = false;           ///< ask for decision records
  int64_t first_input = 0;       ///< number of the first example, for the records
  std::string weights_sha256{};  ///< `model.fingerprint()`, for the records; empty = not computed
};

/// What came out and what it cost.
struct PolicyRun {
  at::Tensor output;        ///< as `head` of the model gives it, in batch order
  GateSet gates;            ///< heads [B, L, H]: the gates behind each output
  at::Tensor heads_run;     ///< int64 [B]: heads computed, re-runs included
  at::Tensor kv_heads_run;  ///< int64 [B]: KV heads computed, re-runs included
  at::Tensor layers_run;    ///< int64 [B]: layers, hence feed-forward blocks, re-runs included
  std::string records;      ///< JSON lines, one an example, where asked for
};

/// Runs a batch under any policy: an early gate decides after `embed`; escalation runs the model
/// once or twice. Gates are in original indices; heads that are physically gone do not run or
/// count.
PolicyRun run_policy(GatedModel& model, const Batch& batch, const GatePolicy& policy,
                     const RunOptions& options = {});

/// Useful FLOPs of each sample of a run, double [B]: heads and feed-forward blocks that were
/// computed (core/flops.h), for `tokens` int64 [B] valid tokens.
at::Tensor run_flops(const HeadLayout& layout, const PolicyRun& run, const at::Tensor& tokens);

}  // namespace headkit
