#pragma once

#include <string>
#include <vector>

#include "headkit/gates/gate_policy.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// What a run under a policy records.
struct RunOptions {
  bool record = false;           ///< ask for decision records
  int64_t first_input = 0;       ///< number of the first example, for the records
  std::string weights_sha256{};  ///< `model.fingerprint()`, for the records; empty = not computed
};

/// What came out and what it cost.
struct PolicyRun {
  at::Tensor output;  ///< as `head` of the model gives it, in batch order
  /// The gates behind each output: heads [B, L, H], blocks [B, L, N] where gated. Compensation
  /// that differs between samples is left out.
  GateSet gates;
  at::Tensor heads_run;       ///< int64 [B]: heads computed, re-runs included
  at::Tensor kv_heads_run;    ///< int64 [B]: KV heads computed, re-runs included
  at::Tensor layers_run;      ///< int64 [B]: layers, re-runs included
  at::Tensor neurons_run;     ///< int64 [B]: neurons of feed-forward blocks, re-runs included
  at::Tensor decision_flops;  ///< double [B]: of decisions that cost much; undefined = 0
  std::vector<DecisionRecord> records;  ///< one an example, where asked for
};

/// Runs a batch under any policy: `policy.run`.
PolicyRun run_policy(GatedModel& model, const Batch& batch, const GatePolicy& policy,
                     const RunOptions& options = {});

/// Gates of layers < `layer` from `before`, of the others from `after`, for `samples` samples:
/// heads [B, L, H], blocks [B, L, N], and what closed ones add. Throws std::invalid_argument for
/// gates by token and for gates of other units.
GateSet join_gates(const GateSet& before, const GateSet& after, int64_t layer, int64_t samples);

/// Useful FLOPs of each sample of a run, double [B]: heads and neurons that were computed
/// (core/flops.h) and the decisions that count, for `tokens` int64 [B] valid tokens.
at::Tensor run_flops(const HeadLayout& layout, const PolicyRun& run, const at::Tensor& tokens);

}  // namespace headkit
