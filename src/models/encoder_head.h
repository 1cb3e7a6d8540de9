#pragma once

#include <optional>
#include <string>

#include "headkit/models/encoder_config.h"
#include "models/encoder_family.h"
#include "models/layer_norm.h"
#include "models/parameter_visitor.h"

namespace headkit {

/// Everything of an encoder after its last layer.
class EncoderHead {
 public:
  EncoderHead(const EncoderConfig& config, const EncoderFamily& family);

  /// [B, T, D] -> logits [B, labels], or the last hidden state [B, T, D] of a base model.
  at::Tensor operator()(const at::Tensor& hidden) const;
  /// Parameters of the base model after its layers.
  void visit_base(const std::string& prefix, const ParameterVisitor& visitor);
  void visit_classifier(const ParameterVisitor& visitor);

  /// A base model may have a pooler or not; its output here is the state that a pooler reads.
  bool has_pooler;

 private:
  const EncoderConfig config_;
  const EncoderFamily& family_;
  std::optional<LayerNorm> norm_;
  Linear pooler_, dense_, output_;
};

}  // namespace headkit
