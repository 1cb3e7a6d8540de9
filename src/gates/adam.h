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
  /// One step against `gradients` (an undefined one counts as 0), in place; `rate` < 0 = that of
  /// the settings.
  void step(const std::vector<at::Tensor>& gradients, double rate = -1);

  int64_t steps() const { return steps_; }
  const std::vector<at::Tensor>& mean() const { return mean_; }
  const std::vector<at::Tensor>& square() const { return square_; }
  /// Goes on from there; moments in shape and dtype of the parameters.
  void adopt(int64_t steps, const std::vector<at::Tensor>& mean,
             const std::vector<at::Tensor>& square);

 private:
  std::vector<at::Tensor> parameters_, mean_, square_;
  AdamSettings settings_;
  int64_t steps_ = 0;
};

}  // namespace headkit
