#pragma once

#include <ATen/core/Tensor.h>

namespace headkit {

struct LogisticRegression {
  at::Tensor weight;    ///< double [C, F]
  at::Tensor bias;      ///< double [C]
  double ridge = 0;     ///< the penalty taken; infinity = the weights are 0
  double accuracy = 0;  ///< on the held-out fifth; NaN without one
};

/// Multinomial logistic regression of labels int64 [N] in [0, classes) on centred features [N, F]
/// (double): mean cross entropy + ridge / 2 * mean feature variance * |W|^2, by Newton's method
/// with conjugate gradients. `ridge` < 0: the penalty that is best on every fifth example. Labels
/// of one class give weights 0.
LogisticRegression logistic_regression(const at::Tensor& features, const at::Tensor& labels,
                                       int64_t classes, double ridge);

}  // namespace headkit
