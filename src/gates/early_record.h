#pragma once

#include <vector>

#include "headkit/explain/decision_record.h"
#include "headkit/gates/gate_policy.h"

namespace headkit {

/// dtype and device of gates for these hidden states: float64 stays, everything else is float32.
at::TensorOptions gate_options(const at::Tensor& hidden);
/// `dropped_output` in dtype and device of the hidden states; undefined stays.
at::Tensor fitting_dropped_output(const at::Tensor& dropped_output, const at::Tensor& hidden);
/// Valid tokens of each sample.
std::vector<int64_t> valid_tokens(const at::Tensor& hidden, const at::Tensor& attention_mask);

/// A record with everything that the state knows.
DecisionRecord start_record(const GatePolicy& policy, const GatePolicy::State& state,
                            int64_t layers, int64_t heads, int64_t tokens);
/// Heads run and FLOPs of a record whose heads are told, each open head run once.
void count_record(DecisionRecord& record, const GatePolicy::State& state);
/// Fills the budget of a policy that runs each open head once and appends it to the state.
void finish_record(DecisionRecord record, GatePolicy::State& state);

}  // namespace headkit
