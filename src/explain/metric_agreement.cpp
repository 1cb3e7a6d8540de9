#include "headkit/explain/metric_agreement.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/json.h"

namespace headkit {
namespace {

std::vector<double> ranks_from_the_top(const at::Tensor& values) {
  const double* const value = values.const_data_ptr<double>();
  const auto count = static_cast<size_t>(values.numel());
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t i, size_t j) { return value[i] > value[j]; });
  std::vector<double> ranks(count);
  for (size_t first = 0, last = 0; first < count; first = last) {
    while (last < count && value[order[last]] == value[order[first]]) ++last;
    for (size_t i = first; i < last; ++i) {
      ranks[order[i]] = 0.5 * static_cast<double>(first + last + 1);
    }
  }
  return ranks;
}

}  // namespace

MetricAgreement metric_agreement(const std::vector<ScoreSeries>& metrics,
                                 const AgreementOptions& options) {
  MetricAgreement result;
  result.agreement = agreement(metrics, options);
  const int64_t heads = metrics[0].values.size(2), all = metrics[0].values.size(1) * heads;
  result.gap = static_cast<double>(all) / 4;
  std::vector<std::vector<double>> ranks;
  for (const ScoreSeries& metric : metrics) {
    ranks.push_back(
        ranks_from_the_top(metric.values.detach().to(at::kCPU, at::kDouble).mean(0).contiguous()));
  }
  for (size_t i = 0; i < metrics.size(); ++i) {
    for (size_t j = i + 1; j < metrics.size(); ++j) {
      for (int64_t h = 0; h < all; ++h) {
        const double a = ranks[i][static_cast<size_t>(h)], b = ranks[j][static_cast<size_t>(h)];
        if (std::abs(a - b) <= result.gap) continue;
        result.gaps.push_back({{h / heads, h % heads}, metrics[i].name, metrics[j].name, a, b});
      }
    }
  }
  std::stable_sort(result.gaps.begin(), result.gaps.end(), [](const RankGap& a, const RankGap& b) {
    return std::abs(a.first_rank - a.second_rank) > std::abs(b.first_rank - b.second_rank);
  });
  return result;
}

std::string MetricAgreement::to_json() const {
  Json json = parse_json("metric_agreement", agreement.to_json());
  json["gap"] = gap;
  json["gaps"] = Json::array();
  for (const RankGap& each : gaps) {
    json["gaps"].push_back({{"layer", each.head.layer},
                            {"head", each.head.head},
                            {"first", each.first},
                            {"second", each.second},
                            {"first_rank", each.first_rank},
                            {"second_rank", each.second_rank}});
  }
  return json.dump();
}

}  // namespace headkit
