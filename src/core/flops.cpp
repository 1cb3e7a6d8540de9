#include "headkit/core/flops.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "headkit/core/error.h"

namespace headkit {

at::Tensor active_kv_heads(const HeadLayout& layout, const at::Tensor& active) {
  HEADKIT_CHECK(active.dim() >= 2 && active.size(-1) == layout.heads, "active_kv_heads",
                "active heads of shape [..., layers, " + std::to_string(layout.heads) + "]",
                "shape ", active.sizes());
  const int64_t kv_heads = layout.key_value_heads();
  return active.to(at::kCPU, at::kBool)
      .unflatten(-1, {kv_heads, layout.heads / kv_heads})
      .any(-1)
      .sum({-2, -1}, false, at::kLong);
}

double attention_flops(const HeadLayout& layout, double active_heads, int64_t tokens,
                       std::optional<double> active_kv_heads) {
  const double length = static_cast<double>(tokens);
  const double width = static_cast<double>(layout.model_dim);
  double kv_heads = active_kv_heads.value_or(active_heads);
  if (!active_kv_heads && layout.key_value_heads() != layout.heads) {
    kv_heads = std::min(kv_heads, static_cast<double>(layout.layers * layout.key_value_heads()));
  }
  return 4.0 * length * static_cast<double>(layout.head_dim) *
         (active_heads * (width + length) + kv_heads * width);
}

double feed_forward_flops(const HeadLayout& layout, int64_t tokens) {
  return 4.0 * static_cast<double>(tokens) * static_cast<double>(layout.model_dim) *
         static_cast<double>(layout.feed_forward);
}

double encoder_flops(const HeadLayout& layout, double active_heads, int64_t tokens,
                     std::optional<double> active_kv_heads) {
  return attention_flops(layout, active_heads, tokens, active_kv_heads) +
         static_cast<double>(layout.layers) * feed_forward_flops(layout, tokens);
}

double unit_flops(const HeadLayout& layout, const UnitCounts& counts, double tokens) {
  const double width = static_cast<double>(layout.model_dim);
  return 4.0 * tokens * static_cast<double>(layout.head_dim) *
             (counts.heads * (width + tokens) + counts.kv_heads * width) +
         4.0 * tokens * width * counts.neurons;
}

namespace {

void check_matrices(const HeadLayout& layout, int64_t matrices) {
  layout.check("unit_costs");
  HEADKIT_CHECK(matrices == 2 || matrices == 3, "unit_costs",
                "2 linear maps in a feed-forward block, or 3 in a gated one", matrices);
}

// Costs from those of the projections of Q and O with the core, of a KV head, and of a neuron.
UnitCosts shared_costs(const HeadLayout& layout, double head, double kv_head, double neuron) {
  if (layout.key_value_heads() == layout.heads) return {head + kv_head, neuron, 0};
  return {head, neuron, kv_head * static_cast<double>(layout.layers * layout.key_value_heads())};
}

}  // namespace

UnitCosts unit_macs(const HeadLayout& layout, double tokens, int64_t matrices) {
  check_matrices(layout, matrices);
  HEADKIT_CHECK(tokens > 0 && std::isfinite(tokens), "unit_costs", "a positive number of tokens",
                tokens);
  const auto width = static_cast<double>(layout.model_dim);
  const double row = tokens * static_cast<double>(layout.head_dim);
  return shared_costs(layout, 2 * row * (width + tokens), 2 * row * width,
                      static_cast<double>(matrices) * tokens * width);
}

UnitCosts unit_parameters(const HeadLayout& layout, int64_t matrices) {
  check_matrices(layout, matrices);
  const auto width = static_cast<double>(layout.model_dim);
  const double head = 2 * static_cast<double>(layout.head_dim) * width;
  return shared_costs(layout, head, head, static_cast<double>(matrices) * width);
}

}  // namespace headkit
