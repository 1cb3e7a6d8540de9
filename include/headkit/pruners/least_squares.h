#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace headkit {

/// All are in double on CPU, whatever comes in. Systems are symmetric and may be singular: the
/// solution of least norm is taken.

/// m = argmin ||A m - b||^2 + lambda ||m - 1||^2 from `gram` = A^T A [k, k] and `cross` = A^T b
/// [k]: scales of the k units that stay, so that together they give the output b of all. The
/// residual is never above that of m = 1; m goes to 1 as lambda grows. Throws std::invalid_argument
/// for other shapes or lambda < 0. Source: Kwon et al. 2022, with a ridge around 1 instead of
/// damped normal equations.
at::Tensor tune_mask(const at::Tensor& gram, const at::Tensor& cross, double lambda);

/// W = argmin sum_t ||W x_t - y_t||^2 + lambda ||W - start||^2 from `gram` = sum x x^T [n, n] and
/// `cross` = sum y x^T [D, n]; `start` [D, n].
at::Tensor refit_projection(const at::Tensor& gram, const at::Tensor& cross,
                            const at::Tensor& start, double lambda);

/// A linear map that loses input columns one structure at a time, the others taking over what they
/// can: optimal brain surgeon on the layer's squared error sum_t ||(W' - W) x_t||^2. Source:
/// Kurtic, Frantar, Alistarh 2023 (ZipLM).
class ColumnSurgeon {
 public:
  /// `weight` [D, n]; `gram` = sum x x^T [n, n]. H = 2 (gram + damping * mean diagonal * I); a
  /// damping of 0 needs a regular `gram`.
  ColumnSurgeon(const at::Tensor& weight, const at::Tensor& gram, double damping = 0);

  /// Twice the squared error that the removal of these columns adds, the others refitted.
  double score(const std::vector<int64_t>& columns) const;
  /// `score` of each column alone, [n]; infinite for those that are gone.
  at::Tensor column_scores() const;
  /// Removes them; `weight` is then the least-squares refit on the columns that are left.
  void remove(const std::vector<int64_t>& columns);
  const at::Tensor& weight() const { return weight_; }    ///< [D, n], 0 in removed columns
  const at::Tensor& inverse() const { return inverse_; }  ///< [n, n], of H; 0 in removed ones

 private:
  at::Tensor weight_, inverse_;
};

}  // namespace headkit
