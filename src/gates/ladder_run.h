#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "gates/units_there.h"
#include "headkit/explain/decision_record.h"
#include "headkit/gates/gate_policy.h"
#include "headkit/gates/ladder.h"
#include "headkit/gates/ladder_trace.h"
#include "headkit/gates/linear_probe.h"
#include "headkit/gates/run_policy.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// The ladder without heads that are physically gone: they are closed on every rung.
Ladder of_heads_there(const Ladder& ladder, const HeadMask& there);

/// Confidence in [0, 1], double [B], that a probe gives: "probe_confidence" as it is,
/// "predicted_loss" as exp(-loss).
at::Tensor probe_confidence(const LinearProbe& probe, const std::string& signal,
                            const at::Tensor& hidden, const at::Tensor& attention_mask);
/// Throws std::invalid_argument if the probe does not give the signal.
void check_signal(const char* operation, const LinearProbe& probe, const std::string& signal);

/// What a rung costs those that go on from the rung below, `first` = layers that it does not
/// repeat.
struct Step {
  int64_t heads = 0, kv_heads = 0, neurons = 0, layers = 0;
};
Step step_cost(const UnitsThere& there, const Rung& rung, int64_t first, int64_t last);

/// Costs of runs that end on each rung, filled into `run` for the rung reached by each sample.
void fill_costs(PolicyRun& run, const std::vector<Step>& totals, const at::Tensor& reached);
/// Whether closed units add the same on both rungs, wherever they are closed.
bool same_compensation(const Rung& a, const Rung& b);
/// Gates [B, L, H] and, where a rung has them, blocks [B, L, N] of the rung reached by each sample;
/// compensation where it is that of all rungs.
GateSet gates_reached(const std::vector<Rung>& rungs, const at::Tensor& reached,
                      const at::Tensor& hidden);

/// Label of each example: that of the largest logit, or the sign of a single one.
at::Tensor labels_of(const at::Tensor& logits);
void check_logits(const char* operation, const at::Tensor& logits);

/// Collects a LadderTrace batch by batch.
class TraceBuilder {
 public:
  TraceBuilder(const UnitsThere& there, std::vector<Step> totals);
  /// `confidence` double [B, R - 1]; `outputs`: of each rung, logits [B, C]; `dense`: the same.
  void add(const Batch& batch, const at::Tensor& confidence, const std::vector<at::Tensor>& outputs,
           const at::Tensor& dense, const std::vector<int64_t>& tokens);
  LadderTrace finish(const char* operation);

 private:
  const UnitsThere& there_;
  std::vector<Step> totals_;
  std::vector<at::Tensor> confidence_, changed_, kl_, loss_, dense_loss_, flops_, dense_;
  bool labelled_ = true;
};

/// Fills what a record tells of a rung: `low` and `high` are what every input runs, and what any
/// may run; `taken` what this one runs.
void record_rung(DecisionRecord& record, const Rung& low, const Rung& high, const Rung& taken,
                 const HeadMask& there);

}  // namespace headkit
