#include "gates/head_rule.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "headkit/core/error.h"

namespace headkit {

int64_t decide_heads(const double* logit, const HeadRule& rule, HeadReason* reason) {
  int64_t open = 0;
  for (int64_t h = 0; h < rule.heads; ++h) {
    if (rule.fixed[h] != 0) {
      reason[h] = rule.fixed[h] > 0 ? HeadReason::kFixed : HeadReason::kClosed;
    } else {
      reason[h] = logit[h] >= rule.threshold ? HeadReason::kScore : HeadReason::kClosed;
    }
    open += reason[h] != HeadReason::kClosed;
  }
  while (open < rule.min_heads) {
    int64_t best = -1;
    for (int64_t h = 0; h < rule.heads; ++h) {
      if (reason[h] == HeadReason::kClosed && rule.fixed[h] == 0 &&
          (best < 0 || logit[h] > logit[best])) {
        best = h;
      }
    }
    if (best < 0) break;  // everything that may run does
    reason[best] = HeadReason::kFloor;
    ++open;
  }
  return open;
}

at::Tensor open_heads(const at::Tensor& logits, const at::Tensor& fixed, double threshold,
                      int64_t min_heads) {
  const at::Tensor values = logits.contiguous();
  at::Tensor open = at::zeros_like(values);
  const HeadRule rule{fixed.const_data_ptr<int8_t>(), fixed.numel(), threshold, min_heads};
  std::vector<HeadReason> reason(rule.heads);
  for (int64_t b = 0; b < values.size(0); ++b) {
    decide_heads(values.const_data_ptr<double>() + b * rule.heads, rule, reason.data());
    double* const row = open.mutable_data_ptr<double>() + b * rule.heads;
    for (int64_t h = 0; h < rule.heads; ++h) row[h] = reason[h] != HeadReason::kClosed;
  }
  return open;
}

double threshold_for_mean(const char* operation, const at::Tensor& logits, const at::Tensor& fixed,
                          int64_t min_heads, int64_t groups, double mean_heads) {
  HEADKIT_CHECK(mean_heads > 0 && mean_heads <= static_cast<double>(fixed.numel()), operation,
                c10::str("mean_heads in (0, ", fixed.numel(), "]"), mean_heads);
  const at::Tensor values = logits.contiguous();
  const double* const z = values.const_data_ptr<double>();
  const int64_t heads = fixed.numel(), samples = values.size(0), part = heads / groups;
  const int8_t* const is_fixed = fixed.const_data_ptr<int8_t>();

  std::vector<double> sorted;
  for (int64_t i = 0; i < values.numel(); ++i) {
    if (is_fixed[i % heads] == 0) sorted.push_back(z[i]);
  }
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  // Candidate k opens everything from sorted[k] upwards; the last one opens nothing.
  const auto threshold_at = [&](size_t k) {
    if (sorted.empty()) return 0.0;
    if (k == 0) return sorted.front() - 1;
    if (k == sorted.size()) return sorted.back() + 1;
    const double middle = sorted[k - 1] + (sorted[k] - sorted[k - 1]) / 2;
    return middle > sorted[k - 1] ? middle : sorted[k];
  };
  std::vector<HeadReason> reason(part);
  const auto mean_at = [&](size_t k) {
    int64_t open = 0;
    for (int64_t row = 0; row < samples * groups; ++row) {
      const HeadRule rule{is_fixed + (row % groups) * part, part, threshold_at(k), min_heads};
      open += decide_heads(z + row * part, rule, reason.data());
    }
    return static_cast<double>(open) / static_cast<double>(samples);
  };
  size_t low = 0, high = sorted.size();
  HEADKIT_CHECK(mean_at(high) <= mean_heads + 1e-9, operation,
                c10::str("a mean of at least ", mean_at(high), " heads (fixed heads and floor)"),
                mean_heads);
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (mean_at(middle) <= mean_heads + 1e-9) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return threshold_at(high);
}

at::Tensor fixed_heads(const char* operation, const at::Tensor& fixed, const HeadMask& present) {
  if (present.layers() == 0) return fixed;
  HEADKIT_CHECK(present.keep().sizes() == fixed.sizes(), operation,
                c10::str("a model of layers and heads ", fixed.sizes()), "one of ",
                present.keep().sizes());
  return fixed.masked_fill(present.keep().logical_not(), -1).contiguous();
}

RuleAt rule_at(double lambda, const at::Tensor& static_logits, const at::Tensor& fixed,
               double threshold) {
  // Not by a low threshold: what cannot be compared runs too.
  if (lambda >= 1) return {fixed.masked_fill(fixed == 0, 1), threshold};
  if (lambda <= 0) return {fixed, std::numeric_limits<double>::max()};
  const at::Tensor contested = static_logits.masked_select(fixed == 0);
  if (contested.numel() == 0) return {fixed, threshold};
  const double mean = contested.mean().item<double>();
  const double deviation = (contested - mean).square().mean().sqrt().item<double>();
  const double scale = deviation > 0 ? deviation * std::numbers::sqrt3 / std::numbers::pi : 1;
  return {fixed, mean + scale * std::log((1 - lambda) / lambda)};
}

}  // namespace headkit
