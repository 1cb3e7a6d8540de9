#include "models/attention_block.h"

#include <ATen/ATen.h>

#include <utility>

#include "headkit/attention/reference.h"
#include "headkit/core/error.h"
#include "models/direct_runs.h"
#include "models/replaced_weights.h"

namespace headkit {
namespace {

constexpr char kReplace[] = "replace_attention";

// Gates of heads, closed also where their whole block is: their work would be for nothing.
at::Tensor closed_with_block(const at::Tensor& gate, const at::Tensor& factor, int64_t heads,
                             const at::TensorOptions& options) {
  const at::Tensor open = factor.detach().ne(0).to(options);  // [] or [B, 1, 1]
  const at::Tensor given = gate.defined() ? gate : at::ones({heads}, options);
  return given * (given.dim() < 3 && open.dim() == 3 ? open.squeeze(2) : open);
}

}  // namespace

AttentionBlock::AttentionBlock(const HeadLayout& layout, int64_t layer, std::vector<int64_t> kept,
                               bool qkv_bias)
    : layout_(layout), layer_(layer), qkv_bias_(qkv_bias), kept_(std::move(kept)) {}

at::Tensor AttentionBlock::operator()(const at::Tensor& hidden, const at::Tensor& mask,
                                      const GateSet& gates, Taps* taps) const {
  const at::Tensor x = DirectRuns::in_this_thread() ? hidden.detach() : hidden;
  const auto heads = static_cast<int64_t>(kept_.size());
  AttentionInput input;
  if (mask.defined()) input.key_padding_mask(mask);
  gate(input, x, gates);
  if (taps != nullptr) {
    if (taps->attention_inputs) taps->attention_input.push_back(x);
    if (taps->head_contexts) {
      taps->head_context.push_back(head_contexts(x, weights_, heads, input));
    }
    if (taps->attention_calls) taps->attention_call.push_back({x, weights_, heads, input});
    if (taps->head_contexts || taps->attention_calls) taps->valid.push_back(mask);
  }
  at::Tensor added = open ? gated_attention(x, weights_, heads, input) : at::zeros_like(x);
  if (const at::Tensor factor = gates.attention_factor(layer_); open && factor.defined()) {
    added = added * factor.to(added.options());
  }
  if (gates.hidden.defined()) added = added * gates.hidden.to(added.options());
  if (taps != nullptr && taps->attention_outputs) taps->attention_output.push_back(added);
  return added;
}

void AttentionBlock::gate(AttentionInput& input, const at::Tensor& x, const GateSet& gates) const {
  const at::TensorOptions options =
      x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  at::Tensor gate = gates.layer_gate(layer_);
  if (gate.defined()) gate = gate.to(options);
  if (const at::Tensor factor = gates.attention_factor(layer_); gates.skip && factor.defined()) {
    gate = closed_with_block(gate, factor, layout_.heads, options);
  }
  if (!gate.defined()) return;
  at::Tensor dropped = gates.layer_dropped_output(layer_);
  if (dropped.defined()) dropped = dropped.to(x.options());
  if (static_cast<int64_t>(kept_.size()) < layout_.heads) {
    const at::Tensor kept = at::tensor(kept_, at::kLong).to(x.device());
    gate = gate.index_select(-1, kept);
    if (dropped.defined()) dropped = dropped.index_select(0, kept);
  }
  input.gate(gate).skip(gates.skip);
  if (dropped.defined()) input.dropped_output(dropped);
}

void AttentionBlock::visit(const std::string& layer, const AttentionNames& names,
                           const ParameterVisitor& visitor) {
  const int64_t rows = static_cast<int64_t>(kept_.size()) * layout_.head_dim;
  const int64_t width = layout_.model_dim;
  const auto map = [&](const char* name, at::Tensor& weight, at::Tensor* bias, int64_t out,
                       int64_t in) {
    visitor(layer + name + ".weight", weight, {out, in});
    if (bias != nullptr) visitor(layer + name + ".bias", *bias, {out});
  };
  AttentionWeights& w = weights_;
  map(names.q, w.q, qkv_bias_ ? &w.q_bias : nullptr, rows, width);
  map(names.k, w.k, qkv_bias_ ? &w.k_bias : nullptr, rows, width);
  map(names.v, w.v, qkv_bias_ ? &w.v_bias : nullptr, rows, width);
  map(names.o, w.o, &w.o_bias, width, rows);
}

void AttentionBlock::check(const AttentionWeights& w, const std::vector<int64_t>& kept) const {
  check_kept(kReplace, "heads", kept, layout_.heads);
  const int64_t rows = static_cast<int64_t>(kept.size()) * layout_.head_dim;
  const int64_t width = layout_.model_dim;
  check_replacement(kReplace, "q", w.q, weights_.q, {rows, width});
  check_replacement(kReplace, "k", w.k, weights_.k, {rows, width});
  check_replacement(kReplace, "v", w.v, weights_.v, {rows, width});
  check_replacement(kReplace, "o", w.o, weights_.o, {width, rows});
  check_replacement(kReplace, "q_bias", w.q_bias, weights_.q_bias, {rows});
  check_replacement(kReplace, "k_bias", w.k_bias, weights_.k_bias, {rows});
  check_replacement(kReplace, "v_bias", w.v_bias, weights_.v_bias, {rows});
  check_replacement(kReplace, "o_bias", w.o_bias, weights_.o_bias, {width});
}

void AttentionBlock::replace(const AttentionWeights& w, const std::vector<int64_t>& kept) {
  AttentionWeights replaced;
  for (const auto part :
       {&AttentionWeights::q, &AttentionWeights::k, &AttentionWeights::v, &AttentionWeights::o,
        &AttentionWeights::q_bias, &AttentionWeights::k_bias, &AttentionWeights::v_bias,
        &AttentionWeights::o_bias}) {
    replaced.*part = in_place_of(w.*part, weights_.*part);
  }
  std::vector<int64_t> heads = kept;
  weights_ = std::move(replaced);
  kept_ = std::move(heads);
}

}  // namespace headkit
