#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace headkit {

/// Settings of `learn_then_test`.
struct LearnThenTestOptions {
  double risk = 0.05;  ///< alpha: the mean loss that is promised, in (0, bound)
  double bound = 1.0;  ///< no loss exceeds it
  double delta = 0.1;  ///< chance that the promise is broken, in (0, 1)
};

/// The lambda that Learn then Test takes, and what it is based on.
struct LearnThenTestResult {
  double lambda = 1;          ///< the grid value taken
  int64_t index = 0;          ///< its place in the grid
  double empirical_risk = 0;  ///< mean loss of the calibration samples there
  double p_value = 0;         ///< of the test passed there; 0 at the last value, which needs none
  int64_t samples = 0;        ///< n
};

/// p-value of "the mean loss exceeds `risk`" for `samples` losses in [0, 1] with mean
/// `empirical_risk`: the smaller of Hoeffding's (by relative entropy) and Bentkus's bound. Source:
/// Bates, Angelopoulos, Lei, Malik, Jordan 2021 (arXiv 2101.02703).
double hoeffding_bentkus_p_value(double empirical_risk, int64_t samples, double risk);

/// Fewest calibration samples that can pass a test: n >= ln(delta) / ln(1 - risk / bound).
int64_t learn_then_test_samples_needed(const LearnThenTestOptions& options);

/// Learn then Test by fixed sequence: from dense down the grid, each value is tested for "risk >
/// alpha" at level delta, until the first test fails; the last value that passed is taken.
///
/// Args as for `conformal_risk_control`, whose envelope it does without: losses need not fall with
/// lambda. Promise: P(risk at lambda <= alpha) >= 1 - delta over the draw of the samples, which
/// must be independent and alike. It then holds for every larger grid value as well, if what
/// picks among them does not look at the sample. Throws std::invalid_argument as
/// conformal_risk_control.
/// Source: Angelopoulos, Bates, Candes, Jordan, Lei 2021 (arXiv 2110.01052).
LearnThenTestResult learn_then_test(const at::Tensor& losses, const at::Tensor& grid,
                                    const LearnThenTestOptions& options = {});

}  // namespace headkit
