#pragma once

#include <ATen/core/Tensor.h>

namespace headkit {

struct RidgeRegression {
  at::Tensor weight;     ///< double [M, F]
  double ridge = 0;      ///< the penalty taken, relative to the mean feature variance; infinity = 0
  double explained = 0;  ///< share of the targets' variance that the features explain, by GCV
};

/// Ridge regression of centred targets [N, M] on centred features [N, F], both double; GCV picks
/// one penalty for all targets unless `ridge` >= 0. `huber` > 0: robust loss beyond so many robust
/// deviations. Source: Golub, Heath, Wahba 1979; Huber 1964.
RidgeRegression ridge_regression(const at::Tensor& features, const at::Tensor& targets,
                                 double ridge, double huber);

}  // namespace headkit
