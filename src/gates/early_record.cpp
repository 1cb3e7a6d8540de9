#include "gates/early_record.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <set>
#include <utility>

#include "headkit/core/flops.h"
#include "headkit/core/version.h"

namespace headkit {

namespace {

// Neurons of the blocks that a record has open.
double open_neurons(const DecisionRecord& record, const GatePolicy::State& state) {
  const HeadLayout& layout = record.layout;
  if (record.block_count == 0) {
    return state.neurons >= 0 ? state.neurons
                              : static_cast<double>(layout.layers * layout.feed_forward);
  }
  int64_t neurons = 0;
  for (const std::vector<int64_t>& open : record.open_blocks) {
    for (const int64_t block : open) {
      neurons += std::min(kNeuronBlock, layout.feed_forward - block * kNeuronBlock);
    }
  }
  return static_cast<double>(neurons);
}

}  // namespace

at::TensorOptions gate_options(const at::Tensor& hidden) {
  return hidden.options().dtype(hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

at::Tensor fitting_dropped_output(const at::Tensor& dropped_output, const at::Tensor& hidden) {
  return dropped_output.defined() ? dropped_output.to(hidden.options()) : at::Tensor();
}

std::vector<int64_t> valid_tokens(const at::Tensor& hidden, const at::Tensor& attention_mask) {
  if (!attention_mask.defined()) return std::vector<int64_t>(hidden.size(0), hidden.size(1));
  const at::Tensor count = attention_mask.to(at::kLong).sum(1).cpu().contiguous();
  const int64_t* data = count.const_data_ptr<int64_t>();
  return {data, data + count.numel()};
}

DecisionRecord start_record(const GatePolicy& policy, const GatePolicy::State& state,
                            int64_t layers, int64_t heads, int64_t tokens) {
  DecisionRecord record;
  record.library_version = HEADKIT_VERSION;
  record.layout = state.layout.layers > 0 ? state.layout : HeadLayout{layers, heads, 0, 0, 0};
  record.weights_sha256 = state.weights_sha256;
  record.input = state.next_input;
  record.tokens = tokens;
  record.policy = policy.name();
  return record;
}

void count_record(DecisionRecord& record, const GatePolicy::State& state) {
  record.heads_run = record.active();
  if (record.layout.model_dim > 0) {
    std::set<std::pair<int64_t, int64_t>> kv_heads;
    for (const HeadDecision& decision : record.heads) {
      if (decision.gate == 0) continue;
      kv_heads.insert({decision.layer, record.layout.kv_head(decision.head)});
    }
    record.flops_run =
        unit_flops(record.layout,
                   {static_cast<double>(record.heads_run), static_cast<double>(kv_heads.size()),
                    open_neurons(record, state)},
                   static_cast<double>(record.tokens));
    record.flops_dense = encoder_flops(
        record.layout, static_cast<double>(record.layout.total_heads()), record.tokens);
  }
}

void finish_record(DecisionRecord record, GatePolicy::State& state) {
  count_record(record, state);
  state.records.push_back(std::move(record));
  ++state.next_input;
}

}  // namespace headkit
