#include "support/toy_model.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <numeric>

#include "headkit/attention/reference.h"
#include "headkit/core/error.h"
#include "support/golden.h"

namespace headkit::testing {

ToyModel::ToyModel(HeadLayout layout, std::vector<AttentionWeights> layers, at::Tensor classifier,
                   at::Tensor classifier_bias, std::vector<FeedForwardWeights> feed_forward)
    : layout_(layout),
      layers_(std::move(layers)),
      feed_forward_(std::move(feed_forward)),
      kept_(layers_.size(), std::vector<int64_t>(layout.heads)),
      kept_neurons_(feed_forward_.size(), std::vector<int64_t>(layout.feed_forward)),
      open_{std::vector<bool>(layers_.size(), true), std::vector<bool>(feed_forward_.size(), true)},
      classifier_(std::move(classifier)),
      classifier_bias_(std::move(classifier_bias)) {
  for (auto& kept : kept_) std::iota(kept.begin(), kept.end(), 0);
  for (auto& kept : kept_neurons_) std::iota(kept.begin(), kept.end(), 0);
}

GatedUnits ToyModel::gated_units() const {
  const bool feed_forward = !feed_forward_.empty();
  return {
      .neurons = feed_forward, .attention_sublayers = true, .feed_forward_sublayers = feed_forward};
}

at::Tensor ToyModel::neurons() {
  if (feed_forward_.empty()) return GatedModel::neurons();
  at::Tensor there = at::zeros({layout_.layers, layout_.feed_forward}, at::kBool);
  for (int64_t l = 0; l < layout_.layers; ++l) {
    there[l].index_fill_(0, at::tensor(kept_neurons_[l], at::kLong), true);
  }
  return there;
}

HeadMask ToyModel::heads() const {
  at::Tensor keep = at::zeros({layout_.layers, layout_.heads}, at::kBool);
  for (int64_t l = 0; l < layout_.layers; ++l) {
    for (int64_t h : kept_[l]) keep[l][h] = true;
  }
  return HeadMask(keep);
}

ModelState ToyModel::embed(const Batch& batch) {
  ModelState state;
  state.hidden = batch.at("x");
  if (batch.count("attention_mask"))
    state.attention_mask = batch.at("attention_mask").to(at::kBool);
  state.batch = batch;
  return state;
}

ModelState ToyModel::run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                         Taps* taps) {
  HEADKIT_CHECK(state.layer == first && first <= last && last <= layout_.layers, "run",
                "layers from " + std::to_string(state.layer), first, " to ", last);
  ModelState next = state;
  const bool only_direct = !only_direct_.expired();
  for (int64_t l = first; l < last; ++l) {
    ModelState read = next;
    if (only_direct) read.hidden = read.hidden.detach();
    next.hidden = next.hidden + attend(read, l, gates, taps);
    if (feed_forward_.empty()) continue;
    const at::Tensor x = only_direct ? next.hidden.detach() : next.hidden;
    next.hidden = next.hidden + feed(x, l, gates, taps);
  }
  next.layer = last;
  return next;
}

at::Tensor ToyModel::attend(const ModelState& state, int64_t l, const GateSet& gates, Taps* taps) {
  const at::Tensor& x = state.hidden;
  if (taps != nullptr && taps->attention_inputs) taps->attention_input.push_back(x);
  AttentionInput input;
  if (state.attention_mask.defined()) input.key_padding_mask(state.attention_mask);
  if (layout_.key_value_heads() != layout_.heads) {
    input.num_kv_heads(static_cast<int64_t>(layout_.kv_heads_of(kept_[l]).size()))
        .kv_head(layout_.kv_places_of(kept_[l]));
  }
  if (taps != nullptr && taps->head_contexts) {
    taps->head_context.push_back(
        head_contexts(x, layers_[l], static_cast<int64_t>(kept_[l].size()), input));
  }
  if (taps != nullptr && (taps->head_contexts || taps->attention_calls)) {
    taps->valid.push_back(state.attention_mask);
  }
  const at::Tensor kept = at::tensor(kept_[l], at::kLong);
  if (const at::Tensor gate = gates.layer_gate(l); gate.defined()) {
    input.gate(gate.index_select(-1, kept)).skip(gates.skip);
    if (const at::Tensor dropped = gates.layer_dropped_output(l); dropped.defined()) {
      input.dropped_output(dropped.index_select(0, kept));
    }
  }
  if (taps != nullptr && taps->attention_calls) {
    taps->attention_call.push_back({x, layers_[l], static_cast<int64_t>(kept_[l].size()), input});
  }
  at::Tensor added =
      open_.attention[l]
          ? gated_attention(x, layers_[l], static_cast<int64_t>(kept_[l].size()), input)
          : at::zeros_like(x);
  if (const at::Tensor factor = gates.attention_factor(l); factor.defined()) added = added * factor;
  if (taps != nullptr && taps->attention_outputs) taps->attention_output.push_back(added);
  return added;
}

at::Tensor ToyModel::feed(const at::Tensor& x, int64_t l, const GateSet& gates, Taps* taps) {
  if (taps != nullptr && taps->feed_forward_inputs) taps->feed_forward_input.push_back(x);
  const FeedForwardWeights& w = feed_forward_.at(l);
  at::Tensor values = at::gelu(at::linear(x, w.in, w.in_bias));
  if (taps != nullptr && taps->neuron_activations) taps->neurons.push_back(values);
  if (at::Tensor gate = gates.layer_neurons(l); gate.defined()) {
    gate = gate.index_select(-1, at::tensor(kept_neurons_[l], at::kLong));
    values = values * (gate.dim() == 1 ? gate : gate.unsqueeze(1));
  }
  at::Tensor dropped;  // what closed blocks add, [D] or [B, 1, D]
  if (gates.blocks.defined()) {
    at::Tensor gate = gates.blocks.select(-2, l);
    const at::Tensor of_block = at::tensor(kept_neurons_[l], at::kLong).floor_divide(kNeuronBlock);
    const at::Tensor wide = gate.index_select(-1, of_block);
    values = values * (wide.dim() == 1 ? wide : wide.unsqueeze(1));
    if (gates.dropped_blocks.defined()) {
      dropped = at::matmul(1 - gate, gates.dropped_blocks[l]);
      if (dropped.dim() == 2) dropped = dropped.unsqueeze(1);
    }
  }
  at::Tensor added =
      open_.feed_forward[l] ? at::linear(values, w.out, w.out_bias) : at::zeros_like(x);
  if (dropped.defined()) added = added + dropped;
  if (const at::Tensor factor = gates.feed_forward_factor(l); factor.defined()) {
    added = added * factor;
  }
  if (taps != nullptr && taps->feed_forward_outputs) taps->feed_forward_output.push_back(added);
  return added;
}

at::Tensor ToyModel::pooled(const ModelState& state) const {
  if (!state.attention_mask.defined()) return state.hidden.mean(1);
  const at::Tensor valid = state.attention_mask.to(state.hidden.dtype()).unsqueeze(2);
  return (state.hidden * valid).sum(1) / valid.sum(1);
}

at::Tensor ToyModel::head(const ModelState& state) {
  return at::linear(pooled(state), classifier_, classifier_bias_);
}

std::shared_ptr<void> ToyModel::direct_paths() {
  const std::shared_ptr<void> held = std::make_shared<int>();
  only_direct_ = held;
  return held;
}

void ToyModel::replace_attention(int64_t layer, const AttentionWeights& weights,
                                 const std::vector<int64_t>& kept) {
  HEADKIT_CHECK(weights.q.size(0) == static_cast<int64_t>(kept.size()) * layout_.head_dim,
                "replace_attention", "weights of the kept heads", weights.q.size(0), " rows");
  const auto kv_heads = static_cast<int64_t>(layout_.kv_heads_of(kept).size());
  HEADKIT_CHECK(
      weights.k.size(0) == kv_heads * layout_.head_dim && weights.v.sizes() == weights.k.sizes(),
      "replace_attention", "keys and values that the kept heads read", weights.k.size(0), " rows");
  layers_.at(layer) = weights;
  kept_.at(layer) = kept;
}

void ToyModel::replace_feed_forward(int64_t layer, const FeedForwardWeights& weights,
                                    const std::vector<int64_t>& kept) {
  const auto count = static_cast<int64_t>(kept.size());
  HEADKIT_CHECK(weights.in.size(0) == count && weights.out.size(1) == count, "replace_feed_forward",
                "weights of the kept neurons", weights.in.size(0), " rows");
  feed_forward_.at(layer) = weights;
  kept_neurons_.at(layer) = kept;
}

std::vector<std::pair<std::string, at::Tensor>> ToyModel::parameters() {
  std::vector<std::pair<std::string, at::Tensor>> all;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const AttentionWeights& w = layers_[l];
    const std::string prefix = "layers." + std::to_string(l) + ".";
    all.insert(all.end(), {{prefix + "q", w.q},
                           {prefix + "k", w.k},
                           {prefix + "v", w.v},
                           {prefix + "o", w.o},
                           {prefix + "q_bias", w.q_bias},
                           {prefix + "k_bias", w.k_bias},
                           {prefix + "v_bias", w.v_bias},
                           {prefix + "o_bias", w.o_bias}});
  }
  for (size_t l = 0; l < feed_forward_.size(); ++l) {
    const FeedForwardWeights& w = feed_forward_[l];
    const std::string prefix = "layers." + std::to_string(l) + ".feed_forward.";
    all.insert(all.end(), {{prefix + "in", w.in},
                           {prefix + "out", w.out},
                           {prefix + "in_bias", w.in_bias},
                           {prefix + "out_bias", w.out_bias}});
  }
  all.emplace_back("classifier", classifier_);
  all.emplace_back("classifier_bias", classifier_bias_);
  return all;
}

std::shared_ptr<ToyModel> golden_toy_model() {
  const nlohmann::json& in = golden_case("toy.model")["inputs"];
  std::vector<AttentionWeights> layers;
  for (const auto& layer : in["layers"]) {
    layers.push_back({golden_tensor(layer["W_Q"]), golden_tensor(layer["W_K"]),
                      golden_tensor(layer["W_V"]), golden_tensor(layer["W_O"]),
                      golden_tensor(layer["b_Q"]), golden_tensor(layer["b_K"]),
                      golden_tensor(layer["b_V"]), golden_tensor(layer["b_O"])});
  }
  return std::make_shared<ToyModel>(
      HeadLayout{in["num_layers"], in["num_heads"], in["head_dim"], in["model_dim"], 0},
      std::move(layers), golden_tensor(in["W_C"]), golden_tensor(in["b_C"]));
}

Batch golden_toy_batch() {
  const nlohmann::json& in = golden_case("toy.model")["inputs"];
  std::vector<at::Tensor> examples;
  int64_t longest = 0;
  for (const auto& x : in["x"]) {
    examples.push_back(golden_tensor(x));
    longest = std::max(longest, examples.back().size(0));
  }
  for (at::Tensor& x : examples) x = at::constant_pad_nd(x, {0, 0, 0, longest - x.size(0)});
  const at::Tensor lengths = golden_tensor(in["lengths"]);
  return {{"x", at::stack(examples)},
          {"attention_mask", at::arange(longest).unsqueeze(0) < lengths.unsqueeze(1)},
          {"labels", golden_tensor(in["labels"])}};
}

std::shared_ptr<ToyModel> random_toy_model(HeadLayout layout, int64_t classes, uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto normal = [&](std::vector<int64_t> shape, double scale) {
    return at::randn(shape, generator, at::kDouble) * scale;
  };
  const int64_t width = layout.heads * layout.head_dim;
  const int64_t kv_width = layout.key_value_heads() * layout.head_dim;
  const double in = 1.0 / std::sqrt(static_cast<double>(layout.model_dim));
  std::vector<AttentionWeights> layers;
  for (int64_t l = 0; l < layout.layers; ++l) {
    AttentionWeights w;
    w.q = normal({width, layout.model_dim}, in);
    w.k = normal({kv_width, layout.model_dim}, in);
    w.v = normal({kv_width, layout.model_dim}, in);
    w.o = normal({layout.model_dim, width}, in);
    w.q_bias = normal({width}, 0.1);
    w.k_bias = normal({kv_width}, 0.1);
    w.v_bias = normal({kv_width}, 0.1);
    w.o_bias = normal({layout.model_dim}, 0.1);
    layers.push_back(w);
  }
  const at::Tensor classifier = normal({classes, layout.model_dim}, 1);
  const at::Tensor classifier_bias = normal({classes}, 0.1);
  std::vector<FeedForwardWeights> feed_forward;
  for (int64_t l = 0; l < layout.layers && layout.feed_forward > 0; ++l) {
    FeedForwardWeights w;
    w.in = normal({layout.feed_forward, layout.model_dim}, in);
    w.out = normal({layout.model_dim, layout.feed_forward}, in);
    w.in_bias = normal({layout.feed_forward}, 0.1);
    w.out_bias = normal({layout.model_dim}, 0.1);
    feed_forward.push_back(w);
  }
  return std::make_shared<ToyModel>(layout, std::move(layers), classifier, classifier_bias,
                                    std::move(feed_forward));
}

Batch random_toy_batch(const HeadLayout& layout, int64_t examples, int64_t tokens, int64_t classes,
                       uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const at::Tensor lengths = at::randint(1, tokens + 1, {examples, 1}, generator, at::kLong);
  return {{"x", at::randn({examples, tokens, layout.model_dim}, generator, at::kDouble)},
          {"attention_mask", at::arange(tokens).unsqueeze(0) < lengths},
          {"labels", at::randint(0, classes, {examples}, generator, at::kLong)}};
}

}  // namespace headkit::testing
