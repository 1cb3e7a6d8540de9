#include "models/encoder_layer.h"

#include <ATen/ATen.h>

namespace headkit {

at::Tensor EncoderLayer::operator()(const at::Tensor& hidden, const at::Tensor& mask,
                                    const GateSet& gates, Taps* taps) const {
  const at::Tensor& stream = gates.hidden;
  if (norm_first) {
    const at::Tensor between =
        attention(attention_norm(hidden, stream), mask, gates, taps) + hidden;
    return feed_forward(feed_forward_norm(between, stream), gates, taps) + between;
  }
  const at::Tensor between = attention_norm(attention(hidden, mask, gates, taps) + hidden, stream);
  return feed_forward_norm(feed_forward(between, gates, taps) + between, stream);
}

void EncoderLayer::visit(const std::string& prefix, const EncoderFamily& family, int64_t width,
                         const ParameterVisitor& visitor) {
  attention.visit(prefix, family.attention, visitor);
  attention_norm.visit(prefix + family.attention_norm, width, visitor);
  if (norm_first) feed_forward_norm.visit(prefix + family.feed_forward_norm, width, visitor);
  feed_forward.visit(prefix, family.feed_forward, visitor);
  if (!norm_first) feed_forward_norm.visit(prefix + family.feed_forward_norm, width, visitor);
}

}  // namespace headkit
