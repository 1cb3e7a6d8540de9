#include "headkit/pruners/removal.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <exception>
#include <set>
#include <string>

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

// The KV heads that `kept` read, ascending.
std::vector<int64_t> kv_heads_read(const AttentionWeights& weights, int64_t num_heads,
                                   int64_t head_dim, const std::vector<int64_t>& kept,
                                   const std::optional<std::vector<int64_t>>& kv_head) {
  if (kept.empty() || head_dim == 0) return {};
  const int64_t rows = weights.k.size(0), kv_heads = rows / head_dim;
  HEADKIT_CHECK(rows % head_dim == 0 && weights.v.size(0) == rows, "slice_heads",
                "key and value rows of whole heads", rows, " and ", weights.v.size(0),
                " with dh = ", head_dim);
  HEADKIT_CHECK(kv_head ? static_cast<int64_t>(kv_head->size()) == num_heads
                        : kv_heads > 0 && num_heads % kv_heads == 0,
                "slice_heads",
                kv_head ? "a kv_head for each of " + std::to_string(num_heads) + " heads"
                        : "heads divisible by their KV heads, or kv_head",
                kv_head ? kv_head->size() : kv_heads);
  std::set<int64_t> read;
  for (const int64_t head : kept) {
    const int64_t place = kv_head ? (*kv_head)[head] : head / (num_heads / kv_heads);
    HEADKIT_CHECK_INDEX(place >= 0 && place < kv_heads, "slice_heads",
                        "KV heads below " + std::to_string(kv_heads), place);
    read.insert(place);
  }
  return {read.begin(), read.end()};
}

struct LayerChange {
  int64_t layer = 0;
  AttentionWeights before, after;
  std::vector<int64_t> heads_before, heads_after;
};

}  // namespace

AttentionWeights slice_heads(const AttentionWeights& weights, int64_t num_heads,
                             const std::vector<int64_t>& kept, const at::Tensor& added_output,
                             const std::optional<std::vector<int64_t>>& kv_head) {
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
  const int64_t head_dim = num_heads > 0 ? width / num_heads : 0;
  const at::Tensor rows = rows_of(kept, head_dim, weights.q.device());
  const at::Tensor kv_rows = rows_of(kv_heads_read(weights, num_heads, head_dim, kept, kv_head),
                                     head_dim, weights.q.device());
  const auto cut = [](const at::Tensor& tensor, int64_t axis, const at::Tensor& chosen) {
    return tensor.defined() ? tensor.detach().index_select(axis, chosen).contiguous()
                            : at::Tensor();
  };
  AttentionWeights sliced;
  sliced.q = cut(weights.q, 0, rows);
  sliced.k = cut(weights.k, 0, kv_rows);
  sliced.v = cut(weights.v, 0, kv_rows);
  sliced.o = cut(weights.o, 1, rows);
  sliced.q_bias = cut(weights.q_bias, 0, rows);
  sliced.k_bias = cut(weights.k_bias, 0, kv_rows);
  sliced.v_bias = cut(weights.v_bias, 0, kv_rows);
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
    // Some models hold keys and values for each head though they share them.
    std::optional<std::vector<int64_t>> kv_head;
    if (change.before.k.size(0) != change.before.q.size(0)) {
      kv_head = layout.kv_places_of(change.heads_before);
    }
    change.after = slice_heads(change.before, static_cast<int64_t>(change.heads_before.size()),
                               places, added, kv_head);
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
