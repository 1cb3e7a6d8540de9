#include "scorers/resampling.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

namespace headkit {

int64_t draw_below(std::mt19937_64& random, int64_t below) {
  return static_cast<int64_t>(
      (static_cast<unsigned __int128>(random()) * static_cast<uint64_t>(below)) >> 64);
}

at::Tensor draw_counts(std::mt19937_64& random, int64_t rows, int64_t units) {
  at::Tensor counts = at::zeros({rows, units}, at::kDouble);
  double* next = counts.mutable_data_ptr<double>();
  for (int64_t row = 0; row < rows; ++row, next += units) {
    for (int64_t i = 0; i < units; ++i) next[draw_below(random, units)] += 1;
  }
  return counts;
}

std::vector<int64_t> shuffled(std::mt19937_64& random, int64_t count) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t last = count - 1; last > 0; --last) {
    std::swap(order[static_cast<size_t>(last)],
              order[static_cast<size_t>(draw_below(random, last + 1))]);
  }
  return order;
}

at::Tensor percentile(const at::Tensor& sorted, double share) {
  const double place = share * static_cast<double>(sorted.size(0) - 1);
  const auto below = static_cast<int64_t>(std::floor(place));
  const int64_t above = std::min(below + 1, sorted.size(0) - 1);
  return at::lerp(sorted[below], sorted[above], place - static_cast<double>(below));
}

int64_t rows_at_once(int64_t units) {
  constexpr int64_t kCountsAtOnce = int64_t{1} << 22;
  return std::max<int64_t>(kCountsAtOnce / units, 1);
}

double normal_quantile(double share) {
  // The distribution is concave above 0, so Newton's steps from 0 never pass the answer.
  double z = 0;
  for (int step = 0; step < 100; ++step) {
    const double missing = share - 0.5 * std::erfc(-z / std::numbers::sqrt2);
    const double density = std::exp(-0.5 * z * z) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
    const double next = z + missing / density;
    if (!(next > z)) break;
    z = next;
  }
  return z;
}

}  // namespace headkit
