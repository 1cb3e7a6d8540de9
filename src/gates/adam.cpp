#include "gates/adam.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>

namespace headkit {
namespace {

double joint_norm(const std::vector<at::Tensor>& gradients) {
  double sum = 0;
  for (const at::Tensor& gradient : gradients) {
    if (gradient.defined()) sum += gradient.detach().to(at::kDouble).square().sum().item<double>();
  }
  return std::sqrt(sum);
}

}  // namespace

Adam::Adam(std::vector<at::Tensor> parameters, AdamSettings settings)
    : parameters_(std::move(parameters)), settings_(settings) {
  for (const at::Tensor& parameter : parameters_) {
    mean_.push_back(at::zeros_like(parameter.detach()));
    square_.push_back(at::zeros_like(parameter.detach()));
  }
}

void Adam::step(const std::vector<at::Tensor>& gradients, double given_rate) {
  const c10::NoGradGuard no_grad;
  double scale = 1;
  if (settings_.max_norm > 0) {
    const double norm = joint_norm(gradients);
    if (norm > settings_.max_norm) scale = settings_.max_norm / norm;
  }
  ++steps_;
  const double rate = given_rate < 0 ? settings_.learning_rate : given_rate;
  const double mean_share = 1 - std::pow(settings_.first_decay, steps_);
  const double square_share = 1 - std::pow(settings_.second_decay, steps_);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    at::Tensor& value = parameters_[i];
    if (!gradients[i].defined()) continue;
    const at::Tensor gradient = gradients[i].detach() * scale;
    mean_[i].mul_(settings_.first_decay).add_(gradient, 1 - settings_.first_decay);
    square_[i]
        .mul_(settings_.second_decay)
        .addcmul_(gradient, gradient, 1 - settings_.second_decay);
    value.mul_(1 - rate * settings_.weight_decay);
    value.addcdiv_(mean_[i], (square_[i] / square_share).sqrt_().add_(settings_.epsilon),
                   -rate / mean_share);
  }
}

void Adam::adopt(int64_t steps, const std::vector<at::Tensor>& mean,
                 const std::vector<at::Tensor>& square) {
  const c10::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    mean_[i].copy_(mean[i]);
    square_[i].copy_(square[i]);
  }
  steps_ = steps;
}

}  // namespace headkit
