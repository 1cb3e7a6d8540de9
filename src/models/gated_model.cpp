#include "headkit/models/gated_model.h"

#include "core/sha256.h"
#include "headkit/core/error.h"

namespace headkit {

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
  const HeadLayout size = layout();
  if (!gates.empty()) gates.check("gated_model", batch_size(batch), size.layers, size.heads);
  return head(run(embed(batch), 0, size.layers, gates, taps));
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
