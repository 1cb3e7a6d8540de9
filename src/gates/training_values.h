#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "headkit/models/gated_model.h"

namespace headkit {

/// The weights of a model that training may change. Throws std::invalid_argument if there are none.
std::vector<at::Tensor> trainable_weights(const char* operation, GatedModel& model);

/// Puts tensors back as they were unless told that all went well.
class Restore {
 public:
  explicit Restore(std::vector<at::Tensor> values);
  ~Restore();
  Restore(const Restore&) = delete;
  Restore& operator=(const Restore&) = delete;
  void keep() { copies_.clear(); }

 private:
  std::vector<at::Tensor> values_, copies_;
};

}  // namespace headkit
