#include "gates/ridge_regression.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace headkit {

// Huber's loss by pseudo-targets: the penalised normal equations stay the same, so one
// factorisation serves all iterations.
RidgeRegression ridge_regression(const at::Tensor& features, const at::Tensor& targets,
                                 double ridge, double huber, const FittedLoss& beside) {
  const double samples = static_cast<double>(features.size(0));
  const auto [eigenvalues, basis] = at::linalg_eigh(features.t().matmul(features) / samples);
  const at::Tensor spectrum = eigenvalues.clamp_min(0);
  const double scale = spectrum.mean().item<double>();
  const auto project = [&](const at::Tensor& y) {
    return basis.t().matmul(features.t().matmul(y)) / samples;  // [D, M]
  };
  const at::Tensor projected = project(targets);
  const double variance = targets.square().mean().item<double>();
  const auto gcv = [&](double penalty) {
    const at::Tensor shrink = spectrum / (spectrum + penalty * scale);
    const at::Tensor gain = (2 * shrink - shrink.square()) / spectrum.clamp_min(1e-12 * scale);
    const double fitted = (gain.unsqueeze(1) * projected.square()).sum(0).mean().item<double>();
    const double freedom = shrink.sum().item<double>() + 1;
    if (freedom >= samples) return std::numeric_limits<double>::infinity();
    return (variance - fitted) / std::pow(1 - freedom / samples, 2);
  };
  const double static_gcv = variance / std::pow(1 - 1 / samples, 2);

  RidgeRegression result;
  result.ridge = std::numeric_limits<double>::infinity();
  result.weight = at::zeros({targets.size(1), features.size(1)}, at::kDouble);
  if (scale <= 0 || variance <= 0) return result;
  if (ridge >= 0) {
    result.ridge = ridge;
  } else {
    double best = static_gcv;
    for (double exponent = -3; exponent <= 5; exponent += 0.25) {
      const double penalty = std::pow(10.0, exponent), value = gcv(penalty);
      if (value < best) {
        best = value;
        result.ridge = penalty;
      }
    }
  }
  if (std::isinf(result.ridge)) return result;
  result.explained = std::max(0.0, 1 - gcv(result.ridge) / static_gcv);

  const at::Tensor inverse = 1 / (spectrum + (result.ridge + 1e-12) * scale).unsqueeze(1);
  at::Tensor weight = basis.matmul(inverse * projected);  // [D, M]
  at::Tensor limit;  // of residuals, for each target; undefined = squares only
  const auto pull = [&](const at::Tensor& fitted) {
    const at::Tensor residual = targets - fitted;
    return limit.defined() ? at::minimum(at::maximum(residual, -limit), limit) : residual;
  };
  if (huber > 0) {
    constexpr int kIterations = 20;
    constexpr double kNormal = 1.4826;  // median absolute deviation to standard deviation
    at::Tensor fitted = features.matmul(weight);
    limit = huber * kNormal * std::get<0>((targets - fitted).abs().median(0)).clamp_min(1e-12);
    for (int i = 0; i < kIterations; ++i) {
      const at::Tensor pseudo = fitted + pull(fitted);
      weight = basis.matmul(inverse * project(pseudo - pseudo.mean(0)));
      fitted = features.matmul(weight);
    }
  }
  if (beside.weight > 0) {
    constexpr int kIterations = 500;
    constexpr double kEnough = 1e-9;
    // Squares of curvature `bend` that lie above all losses and touch them at the present fit.
    const double bend = 1 + beside.weight * beside.curvature;
    const at::Tensor solve = 1 / (spectrum + (result.ridge + 1e-12) * scale / bend).unsqueeze(1);
    for (int i = 0; i < kIterations; ++i) {
      const at::Tensor fitted = features.matmul(weight);
      const at::Tensor down = pull(fitted) - beside.weight * beside.gradient(fitted);
      const at::Tensor next = basis.matmul(solve * project(fitted + down / bend));
      const double moved = (next - weight).abs().max().item<double>();
      weight = next;
      if (moved <= kEnough * weight.abs().max().item<double>()) break;
    }
  }
  result.weight = weight.t().contiguous();
  return result;
}

}  // namespace headkit
