#include "headkit/gates/integer_scores.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "integer_scores";
constexpr double kLargest = 127;

struct Rounded {
  std::vector<int8_t> values;  // [T, dh]
  double step = 0;
};

Rounded rounded(const std::vector<double>& exact) {
  double most = 0;
  for (const double value : exact) {
    HEADKIT_CHECK(std::isfinite(value), kOperation, "finite queries and keys", value);
    most = std::max(most, std::abs(value));
  }
  Rounded result{std::vector<int8_t>(exact.size()), most / kLargest};
  if (most == 0) return result;
  for (size_t i = 0; i < exact.size(); ++i) {
    result.values[i] = static_cast<int8_t>(std::nearbyint(exact[i] / result.step));
  }
  return result;
}

int64_t dot(const int8_t* a, const int8_t* b, int64_t count) {
  int32_t sum = 0;  // exact up to 2^31 / 127^2, 133000 products
  for (int64_t d = 0; d < count; ++d) sum += static_cast<int32_t>(a[d]) * b[d];
  return sum;
}

// Squares of all products of rows, summed row by row so that no sum of integers overflows.
double by_scores(const Rounded& q, const Rounded& k, int64_t tokens, int64_t width) {
  double sum = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    int64_t row = 0;
    for (int64_t j = 0; j < tokens; ++j) {
      const int64_t score = dot(&q.values[i * width], &k.values[j * width], width);
      row += score * score;
    }
    sum += static_cast<double>(row);
  }
  return sum;
}

std::vector<int64_t> gram(const Rounded& x, int64_t tokens, int64_t width) {
  std::vector<int64_t> sums(static_cast<size_t>(width * width));
  for (int64_t t = 0; t < tokens; ++t) {
    const int8_t* const row = &x.values[t * width];
    for (int64_t a = 0; a < width; ++a) {
      for (int64_t b = 0; b < width; ++b) {
        sums[a * width + b] += static_cast<int32_t>(row[a]) * row[b];
      }
    }
  }
  return sums;
}

double by_grams(const Rounded& q, const Rounded& k, int64_t tokens, int64_t width) {
  const std::vector<int64_t> left = gram(q, tokens, width), right = gram(k, tokens, width);
  double sum = 0;
  for (size_t i = 0; i < left.size(); ++i) {
    sum += static_cast<double>(left[i]) * static_cast<double>(right[i]);
  }
  return std::max(0.0, sum);
}

bool takes_scores(int64_t tokens, int64_t head_dim) { return tokens <= 2 * head_dim; }

}  // namespace

double integer_score_norm(const at::Tensor& queries, const at::Tensor& keys, double scale) {
  HEADKIT_CHECK(queries.defined() && queries.dim() == 2 && keys.defined() &&
                    queries.sizes() == keys.sizes() && queries.scalar_type() == at::kDouble &&
                    keys.scalar_type() == at::kDouble && queries.is_cpu() && keys.is_cpu() &&
                    queries.is_contiguous() && keys.is_contiguous(),
                kOperation, "float64 queries and keys of one shape [tokens, head_dim] on the CPU",
                queries.defined() && keys.defined()
                    ? c10::str(queries.scalar_type(), " ", queries.sizes(), " and ",
                               keys.scalar_type(), " ", keys.sizes())
                    : "none");
  const int64_t tokens = queries.size(0), width = queries.size(1);
  if (tokens == 0 || width == 0) return 0;
  const double* const q = queries.const_data_ptr<double>();
  const double* const k = keys.const_data_ptr<double>();
  std::vector<double> centred(k, k + tokens * width);
  for (int64_t d = 0; d < width; ++d) {
    double mean = 0;
    for (int64_t t = 0; t < tokens; ++t) mean += k[t * width + d];
    mean /= static_cast<double>(tokens);
    for (int64_t t = 0; t < tokens; ++t) centred[t * width + d] -= mean;
  }
  const Rounded left = rounded({q, q + tokens * width}), right = rounded(centred);
  const double square = takes_scores(tokens, width) ? by_scores(left, right, tokens, width)
                                                    : by_grams(left, right, tokens, width);
  return left.step * right.step * std::abs(scale) * std::sqrt(square);
}

double integer_score_flops(int64_t tokens, int64_t head_dim) {
  const auto t = static_cast<double>(tokens), d = static_cast<double>(head_dim);
  return takes_scores(tokens, head_dim) ? 2 * t * t * (d + 1) : 4 * t * d * d + 2 * d * d;
}

}  // namespace headkit
