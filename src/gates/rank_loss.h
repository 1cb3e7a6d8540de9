#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace headkit {

/// Heads of one layer among the columns of a fit, and how many of them run.
struct RankGroup {
  std::vector<int64_t> columns;
  int64_t top = 0;  ///< k: from 1 to one less than there are columns; else the group counts nothing
};

/// Pairwise logistic rank loss at the boundary of the top k: for each input and group the mean of
/// log(1 + exp(z_j - z_i)) over columns i of the k largest targets and j of the others, weighed by
/// the difference of their targets (ties: the lower column is the larger). Convex in z; its second
/// derivative along any direction is at most 1/2 of the squared change of z.
class RankLoss {
 public:
  /// `targets`: double [N, M].
  RankLoss(const at::Tensor& targets, std::vector<RankGroup> groups);

  /// Mean over inputs, of the sum over groups; `logits`: double [N, M].
  double value(const at::Tensor& logits) const;
  /// N times the derivative of `value` by each logit, double [N, M].
  at::Tensor gradient(const at::Tensor& logits) const;
  static constexpr double kCurvature = 0.5;

 private:
  struct Pairs {
    at::Tensor high, low;  // int64 [N, k], [N, n - k]: columns
    at::Tensor weight;     // double [N, k, n - k], sums to 1, or 0 where all are tied
  };
  std::vector<Pairs> groups_;
};

}  // namespace headkit
