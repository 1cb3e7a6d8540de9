#pragma once

#include <string>

#include "models/parameter_visitor.h"

namespace headkit {

/// A norm over the residual stream, whose dimensions may have gates.
class LayerNorm {
 public:
  explicit LayerNorm(double eps) : eps_(eps) {}

  /// [B, T, D] -> [B, T, D]. `gate` [D] or undefined: statistics over the open dimensions alone,
  /// the result times the gates; closed ones are 0.
  at::Tensor operator()(const at::Tensor& x, const at::Tensor& gate = {}) const;
  void visit(const std::string& name, int64_t width, const ParameterVisitor& visitor);

 private:
  at::Tensor over_open(const at::Tensor& x, const at::Tensor& gate) const;
  at::Tensor with_constant_scale(const at::Tensor& x) const;

  at::Tensor weight_, bias_;
  double eps_;
};

}  // namespace headkit
