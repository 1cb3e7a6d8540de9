#include "models/feed_forward_block.h"

#include <ATen/ATen.h>

#include <utility>

#include "models/direct_runs.h"
#include "models/replaced_weights.h"

namespace headkit {
namespace {

constexpr char kReplace[] = "replace_feed_forward";

at::Tensor activated(const at::Tensor& x, const std::string& activation) {
  if (activation == "gelu") return at::gelu(x);
  if (activation == "gelu_tanh") return at::gelu(x, "tanh");
  return activation == "relu" ? at::relu(x) : at::silu(x);
}

// [n] or [B, n] as factors of [B, T, n].
at::Tensor by_token(const at::Tensor& gate) { return gate.dim() == 1 ? gate : gate.unsqueeze(1); }

at::TensorOptions gate_options(const at::Tensor& x) {
  return x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

}  // namespace

FeedForwardBlock::FeedForwardBlock(const HeadLayout& layout, int64_t layer,
                                   std::vector<int64_t> kept, std::string activation)
    : layout_(layout), layer_(layer), kept_(std::move(kept)), activation_(std::move(activation)) {}

at::Tensor FeedForwardBlock::operator()(const at::Tensor& hidden, const GateSet& gates,
                                        Taps* taps) const {
  const at::Tensor x = DirectRuns::in_this_thread() ? hidden.detach() : hidden;
  if (taps != nullptr && taps->feed_forward_inputs) taps->feed_forward_input.push_back(x);
  const bool pruned = static_cast<int64_t>(kept_.size()) < layout_.feed_forward;
  const bool seen = taps != nullptr && taps->neuron_activations;
  // Gates of single neurons, and of what is left of blocks, run as a mask.
  const bool single = seen || gates.neurons.defined() || (pruned && gates.blocks.defined());
  at::Tensor added;
  if (open || seen) added = single ? by_neuron(x, gates, taps) : by_blocks(x, gates);
  if (!open) added = at::zeros_like(x);
  if (const at::Tensor factor = gates.feed_forward_factor(layer_); factor.defined()) {
    added = added * factor.to(added.options());
  }
  if (gates.hidden.defined()) added = added * gates.hidden.to(added.options());
  if (taps != nullptr && taps->feed_forward_outputs) taps->feed_forward_output.push_back(added);
  return added;
}

at::Tensor FeedForwardBlock::by_blocks(const at::Tensor& x, const GateSet& gates) const {
  FeedForwardInput input;
  input.activation(activation_).block_size(kNeuronBlock);
  if (gates.blocks.defined()) {
    input.gate(gates.blocks.select(-2, layer_).to(gate_options(x))).skip(gates.skip);
    if (gates.dropped_blocks.defined()) {
      input.dropped_output(gates.dropped_blocks.select(0, layer_).to(x.options()));
    }
  }
  return gated_feed_forward(x, weights_, input);
}

at::Tensor FeedForwardBlock::by_neuron(const at::Tensor& x, const GateSet& gates,
                                       Taps* taps) const {
  at::Tensor values = activated(at::linear(x, weights_.in, weights_.in_bias), activation_);
  if (taps != nullptr && taps->neuron_activations) taps->neurons.push_back(values);
  const at::Tensor kept = at::tensor(kept_, at::kLong).to(x.device());
  if (gates.neurons.defined()) {
    const at::Tensor gate = gates.layer_neurons(layer_).to(x.options()).index_select(-1, kept);
    values = values * by_token(gate);
  }
  if (!gates.blocks.defined()) return at::linear(values, weights_.out, weights_.out_bias);
  const at::Tensor gate = gates.blocks.select(-2, layer_).to(x.options());
  const at::Tensor of_block = kept.floor_divide(kNeuronBlock);
  values = values * by_token(gate.index_select(-1, of_block));
  at::Tensor added = at::linear(values, weights_.out, weights_.out_bias);
  if (!gates.dropped_blocks.defined()) return added;
  // A block whose neurons are all gone left nothing to stand in for.
  const at::Tensor there = at::zeros({gate.size(-1)}, x.options()).index_fill_(0, of_block, 1);
  const at::Tensor dropped = gates.dropped_blocks.select(0, layer_).to(x.options());
  return added + by_token(at::matmul((1 - gate) * there, dropped));
}

void FeedForwardBlock::visit(const std::string& layer, const FeedForwardNames& names,
                             const ParameterVisitor& visitor) {
  const auto count = static_cast<int64_t>(kept_.size());
  visitor(layer + names.in + ".weight", weights_.in, {count, layout_.model_dim});
  visitor(layer + names.in + ".bias", weights_.in_bias, {count});
  visitor(layer + names.out + ".weight", weights_.out, {layout_.model_dim, count});
  visitor(layer + names.out + ".bias", weights_.out_bias, {layout_.model_dim});
}

void FeedForwardBlock::check(const FeedForwardWeights& w, const std::vector<int64_t>& kept) const {
  check_kept(kReplace, "neurons", kept, layout_.feed_forward);
  const auto count = static_cast<int64_t>(kept.size());
  const int64_t width = layout_.model_dim;
  check_replacement(kReplace, "in", w.in, weights_.in, {count, width});
  check_replacement(kReplace, "out", w.out, weights_.out, {width, count});
  check_replacement(kReplace, "up", w.up, weights_.up, {});
  check_replacement(kReplace, "in_bias", w.in_bias, weights_.in_bias, {count});
  check_replacement(kReplace, "up_bias", w.up_bias, weights_.up_bias, {});
  check_replacement(kReplace, "out_bias", w.out_bias, weights_.out_bias, {width});
}

void FeedForwardBlock::replace(const FeedForwardWeights& w, const std::vector<int64_t>& kept) {
  FeedForwardWeights replaced;
  for (const auto part : {&FeedForwardWeights::in, &FeedForwardWeights::out,
                          &FeedForwardWeights::in_bias, &FeedForwardWeights::out_bias}) {
    replaced.*part = in_place_of(w.*part, weights_.*part);
  }
  std::vector<int64_t> neurons = kept;
  weights_ = std::move(replaced);
  kept_ = std::move(neurons);
}

}  // namespace headkit
