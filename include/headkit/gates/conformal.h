#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace headkit {

/// Settings of `conformal_risk_control`.
struct ConformalOptions {
  double risk = 0.05;  ///< alpha: the mean loss that is promised, in (0, bound)
  double bound = 1.0;  ///< no loss exceeds it
};

/// The lambda that conformal risk control takes, and what it is based on.
struct ConformalResult {
  double lambda = 1;          ///< the grid value taken
  int64_t index = 0;          ///< its place in the grid
  double empirical_risk = 0;  ///< mean envelope loss of the calibration samples there
  double corrected_risk = 0;  ///< n/(n+1) * empirical + bound/(n+1), <= risk
  int64_t samples = 0;        ///< n
};

/// Fewest calibration samples that can promise `risk`: n >= bound / risk - 1.
int64_t conformal_samples_needed(const ConformalOptions& options);

/// Conformal risk control on a grid: the smallest lambda whose corrected empirical risk is <=
/// alpha, after each sample's losses were replaced by their envelope max over larger lambda.
///
/// Args: `losses` double [n, m], loss of sample i at grid value j, in [0, bound]; `grid` double
/// [m], ascending, fixed before the losses were seen; the last entry is dense and loses at most
/// `risk`. Promise: E[loss of a new sample at lambda] <= alpha over the draw of samples and new
/// one, for exchangeable samples; any later rule that only moves up the grid keeps it. It is no
/// promise for one input, one task, shifted data or data that were tuned on. Throws
/// std::invalid_argument with the needed n if there are too few samples, and on losses or grids
/// that do not fit. Source: Angelopoulos, Bates, Fisch, Lei, Schuster 2024 (arXiv 2208.02814).
ConformalResult conformal_risk_control(const at::Tensor& losses, const at::Tensor& grid,
                                       const ConformalOptions& options = {});

}  // namespace headkit
