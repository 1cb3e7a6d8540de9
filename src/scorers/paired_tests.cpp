#include "headkit/scorers/paired_tests.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "headkit/core/error.h"

namespace headkit {
namespace {

// P(X = k) of n fair coins.
double fair_coins(int64_t n, int64_t k) {
  return std::exp(std::lgamma(n + 1.0) - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0) -
                  static_cast<double>(n) * std::log(2.0));
}

void check_share(double share, int64_t n) {
  HEADKIT_CHECK(n > 0, "proportion", "at least one example", n);
  HEADKIT_CHECK(share >= 0 && share <= 1, "proportion", "a share from 0 to 1", share);
}

}  // namespace

McNemarTest mcnemar(int64_t examples, int64_t only_a, int64_t only_b) {
  HEADKIT_CHECK(only_a >= 0 && only_b >= 0 && examples > 0 && only_a + only_b <= examples,
                "mcnemar", "counts >= 0 with a sum of at most the number of examples", only_a,
                " and ", only_b, " of ", examples);
  McNemarTest test;
  test.examples = examples;
  test.only_a = only_a;
  test.only_b = only_b;
  const auto n = static_cast<double>(examples), difference = static_cast<double>(only_b - only_a),
             differ = static_cast<double>(only_a + only_b);
  test.accuracy_difference = difference / n;
  test.standard_error = std::sqrt(differ - difference * difference / n) / n;
  if (differ == 0) return test;
  const int64_t fewer = std::min(only_a, only_b), both = only_a + only_b;
  double tail = 0;
  for (int64_t k = 0; k <= fewer; ++k) tail += fair_coins(both, k);
  test.exact_p = std::min(1.0, 2 * tail);
  // Where both are equal, what was observed lies in both tails and is counted once.
  test.mid_p =
      only_a == only_b ? 1 - 0.5 * fair_coins(both, fewer) : 2 * tail - fair_coins(both, fewer);
  test.chi_square = difference * difference / differ;
  const double corrected = std::max(0.0, std::abs(difference) - 1);
  test.chi_square_corrected = corrected * corrected / differ;
  return test;
}

McNemarTest mcnemar(const at::Tensor& a, const at::Tensor& b) {
  for (const at::Tensor& each : {a, b}) {
    HEADKIT_CHECK(each.defined() && each.dim() == 1 && each.scalar_type() == at::kBool, "mcnemar",
                  "bool of shape [examples], true where a classifier is right",
                  each.defined() ? c10::str(each.scalar_type(), " of shape ", each.sizes())
                                 : std::string("none"));
  }
  HEADKIT_CHECK(a.sizes() == b.sizes(), "mcnemar", "two classifiers on the same examples",
                a.size(0), " and ", b.size(0));
  return mcnemar(a.size(0), a.logical_and(b.logical_not()).sum().item<int64_t>(),
                 b.logical_and(a.logical_not()).sum().item<int64_t>());
}

BootstrapInterval paired_bootstrap(const at::Tensor& a, const at::Tensor& b, BootstrapUnit unit,
                                   const BootstrapOptions& options) {
  HEADKIT_CHECK(a.defined() && b.defined() && a.sizes() == b.sizes(), "paired_bootstrap",
                "values of the same examples on both sides", "shapes ",
                a.defined() ? a.sizes() : at::IntArrayRef(), " and ",
                b.defined() ? b.sizes() : at::IntArrayRef());
  return bootstrap_mean(b.detach().to(at::kCPU, at::kDouble) - a.detach().to(at::kCPU, at::kDouble),
                        unit, options);
}

std::vector<double> holm(const std::vector<double>& p_values) {
  for (const double p : p_values) {
    HEADKIT_CHECK(p >= 0 && p <= 1, "holm", "p values from 0 to 1", p);
  }
  std::vector<size_t> order(p_values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t i, size_t j) { return p_values[i] < p_values[j]; });
  std::vector<double> adjusted(p_values.size());
  double largest = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    const auto left = static_cast<double>(order.size() - rank);
    largest = std::max(largest, std::min(1.0, left * p_values[order[rank]]));
    adjusted[order[rank]] = largest;
  }
  return adjusted;
}

double binomial_half_width(double accuracy, int64_t examples) {
  check_share(accuracy, examples);
  return 1.96 * std::sqrt(accuracy * (1 - accuracy) / static_cast<double>(examples));
}

double two_proportion_z(double share_a, int64_t n_a, double share_b, int64_t n_b) {
  check_share(share_a, n_a);
  check_share(share_b, n_b);
  const auto a = static_cast<double>(n_a), b = static_cast<double>(n_b);
  const double pooled = (share_a * a + share_b * b) / (a + b);
  const double variance = pooled * (1 - pooled) * (1 / a + 1 / b);
  return variance > 0 ? (share_a - share_b) / std::sqrt(variance) : 0;
}

}  // namespace headkit
