#pragma once

#include <span>

namespace headkit {

/// How alike the tops of two rankings of the same items are: rank-biased overlap, extrapolated. 1 =
/// the same order; two random orders of n items tend to 0 as n grows. Larger values rank higher,
/// ties go to the lower place. With p = 0.9 the first ten ranks carry about 86 % of the weight.
/// Source: Webber, Moffat, Zobel 2010, equation 30. Throws std::invalid_argument for no items,
/// rankings of different lengths, values that are not finite, and p outside (0, 1).
double rank_biased_overlap(std::span<const double> a, std::span<const double> b, double p = 0.9);

}  // namespace headkit
