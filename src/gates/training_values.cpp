#include "gates/training_values.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "headkit/core/error.h"

namespace headkit {

std::vector<at::Tensor> trainable_weights(const char* operation, GatedModel& model) {
  std::vector<at::Tensor> weights;
  for (const auto& [name, value] : model.parameters()) {
    if (value.is_leaf() && value.requires_grad()) weights.push_back(value);
  }
  HEADKIT_CHECK(!weights.empty(), operation, "weights that require gradients, to train them",
                "none");
  return weights;
}

Restore::Restore(std::vector<at::Tensor> values) : values_(std::move(values)) {
  for (const at::Tensor& value : values_) copies_.push_back(value.detach().clone());
}

Restore::~Restore() {
  if (copies_.empty()) return;
  const c10::NoGradGuard no_grad;
  for (size_t i = 0; i < values_.size(); ++i) values_[i].copy_(copies_[i]);
}

}  // namespace headkit
