#include "headkit/scorers/agreement.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr auto kOperation = "agreement";
constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();
using Values = std::span<const double>;

void check_pair(Values a, Values b) {
  HEADKIT_CHECK(!a.empty() && a.size() == b.size(), kOperation,
                "scores of the same heads on both sides", a.size(), " and ", b.size());
}

// 1 = smallest; equal values share the mean of their ranks.
std::vector<double> average_ranks(Values values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t i, size_t j) { return values[i] < values[j]; });
  std::vector<double> ranks(values.size());
  for (size_t first = 0, last = 0; first < order.size(); first = last) {
    while (last < order.size() && values[order[last]] == values[order[first]]) ++last;
    const double rank = 0.5 * static_cast<double>(first + last + 1);
    for (size_t place = first; place < last; ++place) ranks[order[place]] = rank;
  }
  return ranks;
}

std::vector<int64_t> largest(Values values, int64_t k) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t i, int64_t j) { return values[i] > values[j]; });
  order.resize(static_cast<size_t>(k));
  std::sort(order.begin(), order.end());
  return order;
}

int64_t common(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  std::vector<int64_t> both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return static_cast<int64_t>(both.size());
}

double log_choose(int64_t n, int64_t k) {
  return std::lgamma(n + 1.0) - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0);
}

// P(at least `shared` of k drawn from n are among k marked ones).
double hypergeometric_tail(int64_t n, int64_t k, int64_t shared) {
  double tail = 0;
  for (int64_t both = std::max(shared, 2 * k - n); both <= k; ++both) {
    tail += std::exp(log_choose(k, both) + log_choose(n - k, k - both) - log_choose(n, k));
  }
  return std::min(tail, 1.0);
}

// Pearson, Spearman, Kendall, overlap.
constexpr size_t kStatistics = 4;
using Statistics = std::array<double, kStatistics>;

Statistics compare(Values a, Values b, int64_t k) {
  const auto shared = static_cast<double>(common(largest(a, k), largest(b, k)));
  return {pearson(a, b), spearman(a, b), kendall_tau(a, b).tau_b, shared / static_cast<double>(k)};
}

std::vector<double> row_of(const at::Tensor& values) {
  const double* data = values.const_data_ptr<double>();
  return {data, data + values.numel()};
}

// [runs, n, n, kStatistics] of runs [runs, n, N].
at::Tensor compare_all(const at::Tensor& runs, int64_t k) {
  const int64_t count = runs.size(0), n = runs.size(1), heads = runs.size(2);
  at::Tensor result = at::empty({count, n, n, static_cast<int64_t>(kStatistics)}, at::kDouble);
  auto out = result.accessor<double, 4>();
  const at::Tensor table = runs.contiguous();
  const double* data = table.const_data_ptr<double>();
  const auto row = [&](int64_t run, int64_t series) {
    return Values(data + (run * n + series) * heads, static_cast<size_t>(heads));
  };
  for (int64_t run = 0; run < count; ++run) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = i; j < n; ++j) {
        const Statistics found = compare(row(run, i), row(run, j), k);
        for (size_t s = 0; s < kStatistics; ++s) {
          out[run][i][j][s] = out[run][j][i][s] = found[s];
        }
      }
    }
  }
  return result;
}

at::Tensor between_runs(const at::Tensor& runs) {
  const int64_t count = runs.size(0), n = runs.size(1);
  at::Tensor result = at::full({n}, kUndefined, at::kDouble);
  if (count < 2) return result;
  for (int64_t series = 0; series < n; ++series) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const std::vector<double> one = row_of(runs[i][series].contiguous());
      for (int64_t j = i + 1; j < count; ++j) {
        sum += spearman(one, row_of(runs[j][series].contiguous()));
      }
    }
    result[series] = sum / (0.5 * static_cast<double>(count * (count - 1)));
  }
  return result;
}

at::Tensor rank_spread(const at::Tensor& means) {
  std::vector<at::Tensor> ranks;
  for (int64_t series = 0; series < means.size(0); ++series) {
    ranks.push_back(at::tensor(average_ranks(row_of(means[series].contiguous())), at::kDouble));
  }
  return at::stack(ranks).std(0, /*unbiased=*/false);
}

at::Tensor checked_runs(const std::vector<ScoreSeries>& series) {
  HEADKIT_CHECK(series.size() >= 2, kOperation, "at least two ways to score", series.size());
  std::set<std::string> names;
  std::vector<at::Tensor> all;
  for (const ScoreSeries& each : series) {
    HEADKIT_CHECK(names.insert(each.name).second, kOperation, "names that differ", "'", each.name,
                  "' twice");
    const at::Tensor& values = each.values;
    HEADKIT_CHECK(values.defined() && values.dim() == 3 && values.numel() > 0 &&
                      values.sizes() == series[0].values.sizes(),
                  kOperation, "values of one shape [runs, layers, heads]", "shape ",
                  values.defined() ? values.sizes() : at::IntArrayRef(), " of ", each.name);
    const at::Tensor wide = values.detach().to(at::kCPU, at::kDouble);
    HEADKIT_CHECK(wide.isfinite().all().item<bool>(), kOperation, "finite scores",
                  "NaN or infinity in ", each.name);
    all.push_back(wide.flatten(1));
  }
  return at::stack(all, 1);
}

Json matrix_json(const at::Tensor& matrix) {
  if (!matrix.defined()) return nullptr;
  Json rows = Json::array();
  const auto values = matrix.accessor<double, 2>();
  for (int64_t i = 0; i < matrix.size(0); ++i) {
    Json row = Json::array();
    for (int64_t j = 0; j < matrix.size(1); ++j) {
      row.push_back(std::isnan(values[i][j]) ? Json(nullptr) : Json(values[i][j]));
    }
    rows.push_back(row);
  }
  return rows;
}

Json pair_json(const PairMatrix& matrix) {
  return {{"values", matrix_json(matrix.values)},
          {"lower", matrix_json(matrix.lower)},
          {"upper", matrix_json(matrix.upper)}};
}

}  // namespace

double pearson(Values a, Values b) {
  check_pair(a, b);
  const auto n = static_cast<double>(a.size());
  const double mean_a = std::accumulate(a.begin(), a.end(), 0.0) / n;
  const double mean_b = std::accumulate(b.begin(), b.end(), 0.0) / n;
  double both = 0, square_a = 0, square_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    both += (a[i] - mean_a) * (b[i] - mean_b);
    square_a += (a[i] - mean_a) * (a[i] - mean_a);
    square_b += (b[i] - mean_b) * (b[i] - mean_b);
  }
  if (square_a == 0 || square_b == 0) return kUndefined;
  return std::clamp(both / std::sqrt(square_a * square_b), -1.0, 1.0);
}

double spearman(Values a, Values b) {
  check_pair(a, b);
  return pearson(average_ranks(a), average_ranks(b));
}

KendallTau kendall_tau(Values a, Values b) {
  check_pair(a, b);
  KendallTau result;
  int64_t untied_a = 0, untied_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const int sign_a = (a[i] > a[j]) - (a[i] < a[j]), sign_b = (b[i] > b[j]) - (b[i] < b[j]);
      untied_a += sign_a != 0;
      untied_b += sign_b != 0;
      result.concordant += sign_a * sign_b > 0;
      result.discordant += sign_a * sign_b < 0;
    }
  }
  const auto difference = static_cast<double>(result.concordant - result.discordant);
  const double scale = std::sqrt(static_cast<double>(untied_a) * static_cast<double>(untied_b));
  result.tau_b = scale == 0 ? kUndefined : difference / scale;
  return result;
}

TopKOverlap top_k_overlap(Values a, Values b, int64_t k) {
  check_pair(a, b);
  const auto n = static_cast<int64_t>(a.size());
  HEADKIT_CHECK(k >= 1 && k <= n, kOperation, "1 <= k <= the number of heads, " + std::to_string(n),
                k);
  TopKOverlap result;
  result.top_a = largest(a, k);
  result.top_b = largest(b, k);
  const int64_t shared = common(result.top_a, result.top_b);
  result.overlap = static_cast<double>(shared) / static_cast<double>(k);
  result.chance = static_cast<double>(k) / static_cast<double>(n);
  result.kuncheva = k == n ? kUndefined : (result.overlap - result.chance) / (1 - result.chance);
  result.jaccard = static_cast<double>(shared) / static_cast<double>(2 * k - shared);
  result.p_value = hypergeometric_tail(n, k, shared);
  return result;
}

Agreement agreement(const std::vector<ScoreSeries>& series, const AgreementOptions& options) {
  HEADKIT_CHECK(options.confidence > 0 && options.confidence < 1, kOperation,
                "a confidence level in (0, 1)", options.confidence);
  HEADKIT_CHECK(options.resamples >= 0, kOperation, "a number of resamples >= 0",
                options.resamples);
  const at::Tensor runs = checked_runs(series);
  const int64_t count = runs.size(0), heads = runs.size(2);
  Agreement result;
  for (const ScoreSeries& each : series) result.names.push_back(each.name);
  result.runs = count;
  result.confidence = options.confidence;
  result.over_examples = options.runs == SeriesRuns::kExamples;
  result.top_k = options.top_k == 0 ? (heads + 1) / 2 : options.top_k;
  HEADKIT_CHECK(result.top_k >= 1 && result.top_k <= heads, kOperation,
                "top_k of at most the number of heads, " + std::to_string(heads), options.top_k);
  result.chance = static_cast<double>(result.top_k) / static_cast<double>(heads);

  const at::Tensor means = runs.mean(0, /*keepdim=*/true);
  const at::Tensor by_run = compare_all(result.over_examples ? means : runs, result.top_k);
  const at::Tensor values = by_run.mean(0);
  at::Tensor lower, upper;
  if (options.resamples > 0 && count > 1) {
    std::mt19937_64 random(options.seed);
    const at::Tensor counts = draw_counts(random, options.resamples, count);
    const at::Tensor shares = counts / static_cast<double>(count);
    const at::Tensor drawn = result.over_examples
                                 ? compare_all(at::tensordot(shares, runs, {1}, {0}), result.top_k)
                                 : at::tensordot(shares, by_run, {1}, {0});
    const at::Tensor sorted = std::get<0>(drawn.sort(0));
    const double tail = (1 - options.confidence) / 2;
    lower = percentile(sorted, tail);
    upper = percentile(sorted, 1 - tail);
  }
  size_t place = 0;
  for (PairMatrix* each : {&result.pearson, &result.spearman, &result.kendall, &result.overlap}) {
    const auto index = static_cast<int64_t>(place++);
    each->values = values.select(2, index).contiguous();
    if (!lower.defined()) continue;
    each->lower = lower.select(2, index).contiguous();
    each->upper = upper.select(2, index).contiguous();
  }
  result.between_runs =
      result.over_examples ? at::full({runs.size(1)}, kUndefined, at::kDouble) : between_runs(runs);
  result.rank_spread = rank_spread(means[0]).reshape(series[0].values.sizes().slice(1));
  return result;
}

std::string Agreement::to_json() const {
  Json json{{"names", names},
            {"runs", runs},
            {"interval_over", over_examples ? "examples" : "runs"},
            {"confidence", confidence},
            {"top_k", top_k},
            {"chance", chance},
            {"pearson", pair_json(pearson)},
            {"spearman", pair_json(spearman)},
            {"kendall", pair_json(kendall)},
            {"overlap", pair_json(overlap)}};
  json["between_runs"] = matrix_json(between_runs.unsqueeze(0))[0];
  json["rank_spread"] = matrix_json(rank_spread);
  return json.dump();
}

}  // namespace headkit
