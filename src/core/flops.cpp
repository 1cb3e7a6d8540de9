#include "headkit/core/flops.h"

namespace headkit {

double attention_flops(const HeadLayout& layout, double active_heads, int64_t tokens) {
  const double length = static_cast<double>(tokens);
  return active_heads * 4.0 * length * static_cast<double>(layout.head_dim) *
         (2.0 * static_cast<double>(layout.model_dim) + length);
}

double feed_forward_flops(const HeadLayout& layout, int64_t tokens) {
  return 4.0 * static_cast<double>(tokens) * static_cast<double>(layout.model_dim) *
         static_cast<double>(layout.feed_forward);
}

double encoder_flops(const HeadLayout& layout, double active_heads, int64_t tokens) {
  return attention_flops(layout, active_heads, tokens) +
         static_cast<double>(layout.layers) * feed_forward_flops(layout, tokens);
}

}  // namespace headkit
