#include "headkit/models/gated_model.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/sha256.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

[[noreturn]] void no_feed_forward(const char* operation) {
  throw std::invalid_argument(
      error_message(operation, "a model that shows its feed-forward blocks", "one that does not"));
}

}  // namespace

ModelState ModelState::select_samples(const at::Tensor& index) const {
  ModelState selected;
  selected.hidden = hidden.index_select(0, index.to(hidden.device()));
  if (attention_mask.defined()) {
    selected.attention_mask = attention_mask.index_select(0, index.to(attention_mask.device()));
  }
  selected.batch = select_examples(batch, index);
  selected.layer = layer;
  return selected;
}

ModelState GatedModel::select(const ModelState& state, const at::Tensor& index) {
  HEADKIT_CHECK(state.extra == nullptr, "select",
                "a model that overrides select, because its states carry extra", "none");
  return state.select_samples(index);
}

at::Tensor GatedModel::operator()(const Batch& batch, const GateSet& gates, Taps* taps) {
  if (!gates.empty()) check("gated_model", batch_size(batch), gates);
  return head(run(embed(batch), 0, layout().layers, gates, taps));
}

void GatedModel::check(const char* operation, int64_t batch, const GateSet& gates) {
  const HeadLayout size = layout();
  const GatedUnits units = gated_units();
  const auto has = [&](const at::Tensor& given, bool gated, const char* what) {
    HEADKIT_CHECK(!given.defined() || gated, operation,
                  c10::str("a model with gates of ", what, ", for such gates"), "one without");
  };
  has(gates.neurons, units.neurons, "neurons");
  has(gates.attention_sublayers, units.attention_sublayers, "attention blocks");
  has(gates.feed_forward_sublayers, units.feed_forward_sublayers, "feed-forward blocks");
  has(gates.hidden, units.hidden, "the residual stream");
  gates.check(operation, batch, size.layers, size.heads);
  if (gates.gates_feed_forward()) {
    const at::Tensor there = neurons();
    gates.check_feed_forward(operation, batch, there.size(0), there.size(1));
  }
  gates.check_hidden(operation, size.model_dim);
}

at::Tensor GatedModel::neurons() { no_feed_forward("neurons"); }

FeedForwardWeights GatedModel::feed_forward(int64_t) { no_feed_forward("feed_forward"); }

void GatedModel::replace_feed_forward(int64_t, const FeedForwardWeights&,
                                      const std::vector<int64_t>&) {
  no_feed_forward("replace_feed_forward");
}

Sublayers GatedModel::sublayers() {
  return {std::vector<bool>(static_cast<size_t>(layout().layers), true), {}};
}

bool GatedModel::is_whole() {
  return heads().removed().empty() && sublayers().all() &&
         (!gated_units().neurons || neurons().all().item<bool>());
}

bool Sublayers::all() const {
  const auto open = [](bool block) { return block; };
  return std::all_of(attention.begin(), attention.end(), open) &&
         std::all_of(feed_forward.begin(), feed_forward.end(), open);
}

void GatedModel::set_sublayers(const Sublayers&) {
  throw std::invalid_argument(error_message(
      "set_sublayers", "a model whose blocks can be closed for good", "one whose blocks stay"));
}

std::string GatedModel::fingerprint() {
  Sha256 sum;
  for (const auto& [name, tensor] : parameters()) {
    // Lengths first, so that no two lists of tensors give the same bytes.
    const at::Tensor bytes = tensor.detach().cpu().contiguous();
    std::string header =
        std::to_string(name.size()) + ":" + name + " " + std::string(bytes.dtype().name()) + " [";
    for (int64_t size : bytes.sizes()) header += std::to_string(size) + ",";
    sum.update(header + "]");
    sum.update(bytes.const_data_ptr(), bytes.nbytes());
  }
  return sum.hex();
}

}  // namespace headkit
