#pragma once

#include <cmath>

#include "kernels/params.h"

namespace headkit::kernels {

inline constexpr Activation kActivations[] = {Activation::kGelu, Activation::kGeluTanh,
                                              Activation::kRelu, Activation::kSilu};

/// By the definition, in the type `Number`.
template <typename Number>
Number plain_activation(Activation kind, Number x) {
  switch (kind) {
    case Activation::kGelu:
      return x * std::erfc(-x / std::sqrt(Number(2))) / 2;
    case Activation::kGeluTanh: {
      const Number u = std::sqrt(2 / std::acos(Number(-1))) * (x + Number(0.044715) * x * x * x);
      return x / (1 + std::exp(-2 * u));
    }
    case Activation::kRelu:
      return x > 0 ? x : 0;
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
  }
  return 0;
}

/// The derivative, by symmetric differences of the definition where it is smooth.
inline double plain_slope(Activation kind, double x) {
  if (kind == Activation::kRelu) return x > 0 ? 1.0 : 0.0;
  const double h = 1e-5;
  if (std::abs(x) > 1e3) return x > 0 ? 1.0 : 0.0;
  return (plain_activation(kind, x + h) - plain_activation(kind, x - h)) / (2 * h);
}

}  // namespace headkit::kernels
