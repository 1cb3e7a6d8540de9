#include "headkit/scorers/rank_biased_overlap.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "headkit/core/error.h"

namespace headkit {
namespace {

std::vector<size_t> ranking(std::span<const double> values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t i, size_t j) { return values[i] > values[j]; });
  return order;
}

bool all_finite(std::span<const double> values) {
  return std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
}

}  // namespace

double rank_biased_overlap(std::span<const double> a, std::span<const double> b, double p) {
  constexpr auto kOperation = "rank_biased_overlap";
  HEADKIT_CHECK(!a.empty() && a.size() == b.size(), kOperation, "two rankings of the same items",
                a.size(), " and ", b.size());
  HEADKIT_CHECK(all_finite(a) && all_finite(b), kOperation, "finite values", "NaN or infinity");
  HEADKIT_CHECK(p > 0 && p < 1, kOperation, "p in (0, 1)", p);
  const std::vector<size_t> first = ranking(a), second = ranking(b);
  std::vector<char> seen_a(a.size(), 0), seen_b(a.size(), 0);
  double shared = 0, weight = 1, sum = 0;
  for (size_t depth = 0; depth < a.size(); ++depth) {
    seen_a[first[depth]] = 1;
    shared += seen_b[first[depth]];
    seen_b[second[depth]] = 1;
    shared += seen_a[second[depth]];
    weight *= p;
    sum += shared / static_cast<double>(depth + 1) * weight;
  }
  return (1 - p) / p * sum + shared / static_cast<double>(a.size()) * weight;
}

}  // namespace headkit
