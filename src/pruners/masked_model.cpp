#include "pruners/masked_model.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "headkit/core/error.h"
#include "headkit/pruners/removal.h"

namespace headkit {
namespace {

// Places of the open heads of a layer among those that are physically there.
std::vector<int64_t> open_places(const HeadMask& there, const HeadMask& open, int64_t layer) {
  const std::vector<int64_t> present = there.layer_heads(layer);
  std::vector<int64_t> places;
  for (size_t place = 0; place < present.size(); ++place) {
    if (open.contains({layer, present[place]})) places.push_back(static_cast<int64_t>(place));
  }
  return places;
}

}  // namespace

MaskedModel::MaskedModel(GatedModel& model, const HeadMask& open, at::Tensor dropped_output)
    : model_(model), there_(model.heads()), dropped_output_(std::move(dropped_output)) {
  open_ = there_.intersect(open);
  if (dropped_output_.defined()) {
    dropped_output_ =
        dropped_output_ * open_.keep().logical_not().unsqueeze(2).to(dropped_output_.dtype());
  }
}

ModelState MaskedModel::run(const ModelState& state, int64_t first, int64_t last,
                            const GateSet& gates, Taps* taps) {
  GateSet combined = gates;
  const at::Device device = state.hidden.device();
  const at::ScalarType dtype = state.hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor keep = open_.keep().to(device, dtype);
  if (!gates.heads.defined()) {
    combined.heads = keep;
  } else {
    combined.heads =
        gates.heads * (gates.heads.dim() == 4 ? keep.unsqueeze(1) : keep).to(gates.heads.dtype());
  }
  if (dropped_output_.defined()) {
    const at::Tensor own = dropped_output_.to(state.hidden.options());
    combined.dropped_output =
        gates.dropped_output.defined() ? own + gates.dropped_output * keep.unsqueeze(2) : own;
  } else if (gates.dropped_output.defined()) {
    combined.dropped_output =
        gates.dropped_output * keep.unsqueeze(2).to(gates.dropped_output.dtype());
  }
  const size_t before = taps == nullptr ? 0 : taps->head_context.size();
  const ModelState next = model_.run(state, first, last, combined, taps);
  if (taps != nullptr) {
    for (size_t i = before; i < taps->head_context.size(); ++i) {
      const auto layer = first + static_cast<int64_t>(i - before);
      const at::Tensor places = at::tensor(open_places(there_, open_, layer), at::kLong);
      at::Tensor& context = taps->head_context[i];
      context = context.index_select(2, places.to(context.device()));
    }
  }
  return next;
}

AttentionWeights MaskedModel::attention(int64_t layer) {
  const AttentionWeights weights = model_.attention(layer);
  const std::vector<int64_t> present = there_.layer_heads(layer);
  std::optional<std::vector<int64_t>> kv_head;
  if (weights.k.size(0) != weights.q.size(0)) kv_head = layout().kv_places_of(present);
  return slice_heads(weights, static_cast<int64_t>(present.size()),
                     open_places(there_, open_, layer), {}, kv_head);
}

void MaskedModel::replace_attention(int64_t, const AttentionWeights&, const std::vector<int64_t>&) {
  throw std::invalid_argument(
      error_message("replace_attention", "a model of its own weights", "a view of one"));
}

}  // namespace headkit
