#include "models/encoder_head.h"

#include <ATen/ATen.h>

#include <string_view>

namespace headkit {

EncoderHead::EncoderHead(const EncoderConfig& config, const EncoderFamily& family)
    // A classifier has a pooler where that is its dense layer.
    : has_pooler(family.pooler != nullptr &&
                 (config.labels == 0 || (family.dense == nullptr && family.dense_activation))),
      config_(config),
      family_(family) {
  if (family.norm_first) norm_.emplace(config.norm_eps);
}

at::Tensor EncoderHead::operator()(const at::Tensor& hidden) const {
  at::Tensor last = norm_ ? (*norm_)(hidden) : hidden;
  if (config_.labels == 0) return last;
  at::Tensor first = last.select(1, 0);
  if (family_.dense_activation != nullptr) {
    const Linear& dense = family_.dense == nullptr ? pooler_ : dense_;
    first = at::linear(first, dense.weight, dense.bias);
    const bool is_tanh = std::string_view(family_.dense_activation) == "tanh";
    first = is_tanh ? at::tanh(first) : at::relu(first);
  }
  return at::linear(first, output_.weight, output_.bias);
}

void EncoderHead::visit_base(const std::string& prefix, const ParameterVisitor& visitor) {
  const int64_t width = config_.layout.model_dim;
  if (norm_) norm_->visit(prefix + "layernorm", width, visitor);
  if (has_pooler) pooler_.visit(prefix + family_.pooler, config_.pooled, width, visitor);
}

void EncoderHead::visit_classifier(const ParameterVisitor& visitor) {
  if (config_.labels == 0) return;
  const int64_t width = config_.layout.model_dim;
  if (family_.dense != nullptr) dense_.visit(family_.dense, width, width, visitor);
  output_.visit(family_.output, config_.labels, width, visitor);
}

}  // namespace headkit
