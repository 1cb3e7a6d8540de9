#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "headkit/explain/decision_record.h"

namespace headkit {

/// The addends of linear logits base + W (f - mu) of one sample, whose features f are the mean of
/// its token states and then scalars: a part a valid token, W_D (x_t - mu_D) / tokens, and one a
/// scalar.
class LogitParts {
 public:
  /// `hidden` [T, D], `valid` bool [T] or undefined, `weight` double [heads, D + S], `reference`
  /// [D + S], `scalars` [S] named `names`.
  LogitParts(const at::Tensor& hidden, const at::Tensor& valid, const at::Tensor& weight,
             const at::Tensor& reference, const at::Tensor& scalars,
             const std::vector<std::string>& names);
  /// Writes base, the parts of largest magnitude, the rest, and what rounding left, of `head`.
  void explain(int64_t head, double logit, double base, HeadDecision& decision) const;

 private:
  at::Tensor token_parts_;   // [heads, valid tokens]
  at::Tensor scalar_parts_;  // [heads, S]
  std::vector<int64_t> place_;
  std::vector<std::string> names_;
};

}  // namespace headkit
