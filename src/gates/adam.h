#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace headkit {

struct AdamSettings {
  double learning_rate = 1e-3;
  double weight_decay = 0;  ///< decoupled
  double max_norm = 0;      ///< clips the joint norm of all gradients; 0 = no clip
  double first_decay = 0.9;
  double second_decay = 0.999;
  double epsilon = 1e-8;
};

/// Adam with decoupled weight decay over leaf tensors, given their gradients: nothing is stored in
/// `Tensor::grad`, so that a model is left as it was. Source: Kingma, Ba 2015; Loshchilov, Hutter
/// 2019.
class Adam {
 public:
  Adam(std::vector<at::Tensor> parameters, AdamSettings settings);
  const std::vector<at::Tensor>& parameters() const { return parameters_; }
  /// One step against `gradients` (an undefined one counts as 0), in place.
  void step(const std::vector<at::Tensor>& gradients);

 private:
  std::vector<at::Tensor> parameters_, mean_, square_;
  AdamSettings settings_;
  int64_t steps_ = 0;
};

}  // namespace headkit
