#pragma once

#include <string>

#include "models/attention_block.h"
#include "models/feed_forward_block.h"
#include "models/layer_norm.h"

namespace headkit {

/// One layer of an encoder: two blocks on the residual stream and their norms.
struct EncoderLayer {
  AttentionBlock attention;
  FeedForwardBlock feed_forward;
  LayerNorm attention_norm, feed_forward_norm;
  bool norm_first;

  at::Tensor operator()(const at::Tensor& hidden, const at::Tensor& mask, const GateSet& gates,
                        Taps* taps) const;
  void visit(const std::string& prefix, const EncoderFamily& family, int64_t width,
             const ParameterVisitor& visitor);
};

}  // namespace headkit
