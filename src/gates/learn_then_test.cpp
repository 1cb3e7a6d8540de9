#include "headkit/gates/learn_then_test.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "gates/risk_losses.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "learn_then_test";
// Sums of losses that are whole numbers in exact arithmetic stay so.
constexpr double kSlack = 1e-9;

double term(double a, double b) { return a > 0 ? a * std::log(a / b) : 0; }

// P(Binomial(n, p) <= k).
double binomial_cdf(int64_t k, int64_t n, double p) {
  if (k >= n) return 1;
  double sum = 0;
  for (int64_t i = 0; i <= k; ++i) {
    const auto x = static_cast<double>(i), total = static_cast<double>(n);
    sum += std::exp(std::lgamma(total + 1) - std::lgamma(x + 1) - std::lgamma(total - x + 1) +
                    x * std::log(p) + (total - x) * std::log1p(-p));
  }
  return std::min(sum, 1.0);
}

}  // namespace

double hoeffding_bentkus_p_value(double empirical_risk, int64_t samples, double risk) {
  HEADKIT_CHECK(empirical_risk >= 0 && empirical_risk <= 1, kOperation, "a mean loss in [0, 1]",
                empirical_risk);
  HEADKIT_CHECK(samples > 0, kOperation, "samples", samples);
  HEADKIT_CHECK(risk > 0 && risk < 1, kOperation, "a risk in (0, 1)", risk);
  const auto n = static_cast<double>(samples);
  const double mean = std::min(empirical_risk, risk);
  const double hoeffding = std::exp(-n * (term(mean, risk) + term(1 - mean, 1 - risk)));
  const auto count = static_cast<int64_t>(std::ceil(n * empirical_risk - kSlack));
  const double bentkus = std::numbers::e * binomial_cdf(count, samples, risk);
  return std::min({hoeffding, bentkus, 1.0});
}

int64_t learn_then_test_samples_needed(const LearnThenTestOptions& options) {
  check_risk(kOperation, options.risk, options.bound);
  HEADKIT_CHECK(options.delta > 0 && options.delta < 1, kOperation, "a delta in (0, 1)",
                options.delta);
  return static_cast<int64_t>(
      std::ceil(std::log(options.delta) / std::log1p(-options.risk / options.bound) - kSlack));
}

LearnThenTestResult learn_then_test(const at::Tensor& losses, const at::Tensor& grid,
                                    const LearnThenTestOptions& options) {
  check_losses(kOperation, losses, grid, options.risk, options.bound,
               learn_then_test_samples_needed(options), "n >= ln(delta) / ln(1 - risk / bound)");
  const at::Tensor mean = losses.mean(0);
  LearnThenTestResult result;
  result.samples = losses.size(0);
  result.index = losses.size(1) - 1;
  result.lambda = grid[result.index].item<double>();
  result.empirical_risk = mean[result.index].item<double>();
  for (int64_t j = result.index - 1; j >= 0; --j) {
    const double share = std::clamp(mean[j].item<double>() / options.bound, 0.0, 1.0);
    const double p = hoeffding_bentkus_p_value(share, result.samples, options.risk / options.bound);
    if (p > options.delta) break;
    result.index = j;
    result.lambda = grid[j].item<double>();
    result.empirical_risk = mean[j].item<double>();
    result.p_value = p;
  }
  return result;
}

}  // namespace headkit
