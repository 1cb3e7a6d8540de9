#include "headkit/pruners/removal.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <exception>

#include "headkit/core/error.h"

namespace headkit {
namespace {

at::Tensor rows_of(const std::vector<int64_t>& kept, int64_t head_dim, const at::Device& device) {
  std::vector<int64_t> rows;
  rows.reserve(kept.size() * static_cast<size_t>(head_dim));
  for (int64_t head : kept) {
    for (int64_t i = 0; i < head_dim; ++i) rows.push_back(head * head_dim + i);
  }
  return at::tensor(rows, at::kLong).to(device);
}

struct LayerChange {
  int64_t layer = 0;
  AttentionWeights before, after;
  std::vector<int64_t> heads_before, heads_after;
};

}  // namespace

AttentionWeights slice_heads(const AttentionWeights& weights, int64_t num_heads,
                             const std::vector<int64_t>& kept, const at::Tensor& added_output) {
  HEADKIT_CHECK(
      weights.q.defined() && weights.k.defined() && weights.v.defined() && weights.o.defined(),
      "slice_heads", "weights q, k, v and o", "some undefined");
  const int64_t width = weights.q.size(0);
  HEADKIT_CHECK(num_heads > 0 ? width % num_heads == 0 : width == 0, "slice_heads",
                "query rows that " + std::to_string(num_heads) + " heads share evenly", width);
  int64_t previous = -1;
  for (int64_t head : kept) {
    HEADKIT_CHECK_INDEX(head > previous && head < num_heads, "slice_heads",
                        "ascending heads below " + std::to_string(num_heads), head);
    previous = head;
  }
  const c10::NoGradGuard no_grad;
  const at::Tensor rows = rows_of(kept, num_heads > 0 ? width / num_heads : 0, weights.q.device());
  const auto cut = [&](const at::Tensor& tensor, int64_t axis) {
    return tensor.defined() ? tensor.detach().index_select(axis, rows).contiguous() : at::Tensor();
  };
  AttentionWeights sliced;
  sliced.q = cut(weights.q, 0);
  sliced.k = cut(weights.k, 0);
  sliced.v = cut(weights.v, 0);
  sliced.o = cut(weights.o, 1);
  sliced.q_bias = cut(weights.q_bias, 0);
  sliced.k_bias = cut(weights.k_bias, 0);
  sliced.v_bias = cut(weights.v_bias, 0);
  if (weights.o_bias.defined()) sliced.o_bias = weights.o_bias.detach().clone();
  if (added_output.defined()) {
    HEADKIT_CHECK(added_output.dim() == 1 && added_output.size(0) == weights.o.size(0),
                  "slice_heads",
                  "added_output of shape [" + std::to_string(weights.o.size(0)) + "]", "shape ",
                  added_output.sizes());
    const at::Tensor added = added_output.detach().to(weights.o.device(), at::kDouble);
    sliced.o_bias = (sliced.o_bias.defined() ? sliced.o_bias.to(at::kDouble) + added : added)
                        .to(weights.o.scalar_type());
  }
  return sliced;
}

void remove_heads(GatedModel& model, const HeadMask& mask, const at::Tensor& dropped_output) {
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  HEADKIT_CHECK(mask.layers() == layout.layers && mask.heads() == layout.heads, "remove_heads",
                "a mask of " + std::to_string(layout.layers) + " layers with " +
                    std::to_string(layout.heads) + " heads",
                mask.layers(), " with ", mask.heads());
  if (dropped_output.defined()) {
    const std::vector<int64_t> shape{layout.layers, layout.heads, layout.model_dim};
    HEADKIT_CHECK(dropped_output.sizes() == at::IntArrayRef(shape), "remove_heads",
                  c10::str("dropped_output of shape ", at::IntArrayRef(shape)), "shape ",
                  dropped_output.sizes());
    HEADKIT_CHECK(dropped_output.isfinite().all().item<bool>(), "remove_heads",
                  "finite dropped_output", "NaN or infinity");
  }

  std::vector<LayerChange> changes;
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    LayerChange change;
    change.layer = layer;
    change.heads_before = present.layer_heads(layer);
    std::vector<int64_t> places;
    std::vector<int64_t> going;
    for (size_t place = 0; place < change.heads_before.size(); ++place) {
      const int64_t head = change.heads_before[place];
      if (mask.contains({layer, head})) {
        places.push_back(static_cast<int64_t>(place));
        change.heads_after.push_back(head);
      } else {
        going.push_back(head);
      }
    }
    if (going.empty()) continue;
    at::Tensor added;
    if (dropped_output.defined()) {
      added = dropped_output.select(0, layer)
                  .to(at::kCPU, at::kDouble)
                  .index_select(0, at::tensor(going, at::kLong))
                  .sum(0);
    }
    change.before = model.attention(layer);
    change.after =
        slice_heads(change.before, static_cast<int64_t>(change.heads_before.size()), places, added);
    changes.push_back(std::move(change));
  }

  size_t done = 0;
  try {
    for (; done < changes.size(); ++done) {
      const LayerChange& change = changes[done];
      model.replace_attention(change.layer, change.after, change.heads_after);
    }
  } catch (...) {
    const std::exception_ptr cause = std::current_exception();
    while (done-- > 0) {
      const LayerChange& change = changes[done];
      model.replace_attention(change.layer, change.before, change.heads_before);
    }
    std::rethrow_exception(cause);
  }
}

}  // namespace headkit
