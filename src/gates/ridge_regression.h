#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace headkit {

struct RidgeRegression {
  at::Tensor weight;     ///< double [M, F]
  double ridge = 0;      ///< the penalty taken, relative to the mean feature variance; infinity = 0
  double explained = 0;  ///< share of the targets' variance that the features explain, by GCV
};

/// A further convex loss of what is fitted, beside the squares.
struct FittedLoss {
  double weight = 0;  ///< 0 = none
  /// Its derivative by each fitted value [N, M], times N.
  std::function<at::Tensor(const at::Tensor& fitted)> gradient = {};
  double curvature = 0;  ///< its second derivative never exceeds it
};

/// Ridge regression of centred targets [N, M] on centred features [N, F], both double; GCV picks
/// one penalty for all targets unless `ridge` >= 0. `huber` > 0: robust loss beyond so many robust
/// deviations of the least-squares fit. `beside` is minimised with it, with the same penalty: the
/// mean over N of sum_m huber(r) + beside, plus penalty / 2 * |W|^2. Without features, or where GCV
/// finds nothing to explain, W is 0 whatever `beside` says. Source: Golub, Heath, Wahba 1979; Huber
/// 1964; majorisation Hunter, Lange 2004.
RidgeRegression ridge_regression(const at::Tensor& features, const at::Tensor& targets,
                                 double ridge, double huber, const FittedLoss& beside = {});

}  // namespace headkit
