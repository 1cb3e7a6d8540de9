#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <random>
#include <vector>

namespace headkit {

/// A number of 0 .. below-1. Not std::uniform_int_distribution, whose numbers differ between
/// standard libraries.
int64_t draw_below(std::mt19937_64& random, int64_t below);

/// How often each of n units is drawn in a resample of n, double [rows, n].
at::Tensor draw_counts(std::mt19937_64& random, int64_t rows, int64_t units);

/// 0 .. count-1 in random order.
std::vector<int64_t> shuffled(std::mt19937_64& random, int64_t count);

/// The value below which `share` of the sorted rows lie; linear between the two nearest.
at::Tensor percentile(const at::Tensor& sorted, double share);

/// Rows of counts that fit into some tens of megabytes.
int64_t rows_at_once(int64_t units);

/// z with P(Z <= z) = share for a standard normal Z, 0.5 <= share < 1.
double normal_quantile(double share);

}  // namespace headkit
