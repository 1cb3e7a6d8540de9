#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace headkit {

/// How far an input's pooled feature (pooled_state.h) lies from those seen: the Mahalanobis
/// distance, and a limit that inputs like the calibration ones exceed with chance <= epsilon.
class OodScore {
 public:
  /// Args: `features` double [n >= 2, D], for mean and covariance; `calibration` double [m, D], of
  /// other examples, for the limit: the ceil((m + 1) (1 - epsilon))-th smallest distance, so m >= 1
  /// / epsilon - 1; `shrinkage` in (0, 1]: share of the covariance that is replaced by its mean
  /// variance times the identity. Throws std::invalid_argument, naming the m it would take, and for
  /// features that do not differ.
  static OodScore fit(const at::Tensor& features, const at::Tensor& calibration,
                      double epsilon = 0.01, double shrinkage = 0.1);

  /// Distances, double [B], of features [B, D]; infinite where a feature is not finite. Sums run in
  /// a fixed order over the sample's own numbers.
  at::Tensor operator()(const at::Tensor& features) const;
  double limit() const { return limit_; }
  double epsilon() const { return epsilon_; }
  int64_t size() const { return mean_.size(0); }
  std::string to_json() const;
  static OodScore from_json(const std::string& text);

 private:
  OodScore() = default;

  at::Tensor mean_;       // [D]
  at::Tensor whitening_;  // [D, D]: the inverse of the covariance's lower Cholesky factor
  double limit_ = 0, epsilon_ = 0;
};

}  // namespace headkit
