#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace headkit {

/// What is drawn anew for an interval. An interval over examples says nothing about other seeds,
/// and the other way round.
enum class BootstrapUnit {
  kExamples,  ///< examples; every seed sees the same draw
  kSeeds,     ///< seeds: runs that were trained apart
  kBoth,      ///< seeds and, on their own, examples: runs are judged on the same examples
};

/// Settings of bootstraps over examples.
struct BootstrapOptions {
  int64_t resamples = 10000;
  double confidence = 0.95;  ///< level of the interval, in (0, 1)
  uint64_t seed = 0;         ///< of the draws; the same on every machine
};

/// A mean with its percentile interval.
struct BootstrapInterval {
  double mean = 0;
  double lower = 0;
  double upper = 0;
  double standard_error = 0;  ///< standard deviation over resamples
  double p_value = 1;         ///< two-sided: the mean is 0; at least 2 / (resamples + 1)
};

/// Interval of the mean of `values`: floating point or bool, [examples] or [seeds, examples].
/// Source: Efron, Tibshirani 1993; seeds and examples drawn apart after Owen 2007 (the pigeonhole
/// bootstrap). O(resamples * seeds * examples). Throws std::invalid_argument for other shapes,
/// no values, values that are not finite, and options out of range.
BootstrapInterval bootstrap_mean(const at::Tensor& values,
                                 BootstrapUnit unit = BootstrapUnit::kExamples,
                                 const BootstrapOptions& options = {});

}  // namespace headkit
