#include "headkit/gates/expected_size.h"

#include <ATen/ATen.h>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "expected_size";

at::Tensor open_or_ones(const at::Tensor& open, const char* name, at::IntArrayRef shape) {
  if (!open.defined()) return at::ones(shape, at::kDouble);
  HEADKIT_CHECK(open.sizes() == shape, kOperation, c10::str(name, " of shape ", shape), "shape ",
                open.sizes());
  return open.to(at::kDouble);
}

}  // namespace

at::Tensor expected_size(const OpenUnits& open, const HeadLayout& layout, int64_t matrices) {
  layout.check(kOperation);
  HEADKIT_CHECK(matrices == 2 || matrices == 3, kOperation, "2 or 3 feed-forward matrices",
                matrices);
  const int64_t layers = layout.layers;
  const at::Tensor heads = open_or_ones(open.heads, "heads", {layers, layout.heads});
  const at::Tensor attention =
      open_or_ones(open.attention_sublayers, "attention_sublayers", {layers});
  const at::Tensor neurons = open_or_ones(open.neurons, "neurons", {layers, layout.feed_forward});
  const at::Tensor feed_forward =
      open_or_ones(open.feed_forward_sublayers, "feed_forward_sublayers", {layers});
  const at::Tensor hidden = open_or_ones(open.hidden, "hidden", {layout.model_dim});
  // A KV head that several heads read counts for each of them in part.
  const double rows =
      static_cast<double>(layout.head_dim) *
      (2 + 2 * static_cast<double>(layout.key_value_heads()) / static_cast<double>(layout.heads));
  const at::Tensor by_dimension =
      rows * (heads.sum(1) * attention).sum() +
      static_cast<double>(matrices) * (neurons.sum(1) * feed_forward).sum();
  return hidden.sum() * by_dimension;
}

double full_size(const HeadLayout& layout, int64_t matrices) {
  return expected_size({}, layout, matrices).item<double>();
}

}  // namespace headkit
