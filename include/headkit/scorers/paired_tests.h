#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "headkit/scorers/bootstrap.h"

namespace headkit {

/// Two classifiers on the same examples, compared where they differ.
struct McNemarTest {
  int64_t examples = 0;
  int64_t only_a = 0;              ///< right with a alone
  int64_t only_b = 0;              ///< right with b alone
  double accuracy_difference = 0;  ///< of b minus a
  double exact_p = 1;              ///< two-sided binomial
  double mid_p = 1;                ///< the same, half of what was observed counted
  double chi_square = 0;           ///< one degree of freedom; 0 where they never differ
  double chi_square_corrected = 0;
  double standard_error = 0;  ///< of the difference: what a paired bootstrap converges to
};

/// Source: McNemar 1947. Throws std::invalid_argument unless 0 <= counts and their sum <= examples.
McNemarTest mcnemar(int64_t examples, int64_t only_a, int64_t only_b);
/// `a`, `b`: bool [examples], true where the classifier is right.
McNemarTest mcnemar(const at::Tensor& a, const at::Tensor& b);

/// Interval of mean(b - a); shapes as for bootstrap_mean, the same for both.
BootstrapInterval paired_bootstrap(const at::Tensor& a, const at::Tensor& b,
                                   BootstrapUnit unit = BootstrapUnit::kExamples,
                                   const BootstrapOptions& options = {});

/// P values adjusted for their number, in the given order: at most alpha means rejected at level
/// alpha over the whole family. Source: Holm 1979.
std::vector<double> holm(const std::vector<double>& p_values);

/// 1.96 sqrt(p (1 - p) / n): half the 95 % interval of an accuracy.
double binomial_half_width(double accuracy, int64_t examples);

/// Unpaired z of two shares of `n_a` and `n_b` examples, pooled variance; above 0 where a is
/// larger. 0 where both are 0 or both 1.
double two_proportion_z(double share_a, int64_t n_a, double share_b, int64_t n_b);

}  // namespace headkit
