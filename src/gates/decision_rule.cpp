#include "headkit/gates/decision_rule.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "gates/head_rule.h"
#include "headkit/core/error.h"

namespace headkit {

void DecisionRule::check(const char* operation, int64_t heads) const {
  HEADKIT_CHECK(
      !fixed.defined() || (fixed.is_cpu() && fixed.scalar_type() == at::kChar && fixed.dim() == 1 &&
                           fixed.size(0) == heads && (fixed.abs() <= 1).all().item<bool>()),
      operation, c10::str("int8 fixed heads of -1, 0, 1 and shape [", heads, "]"),
      fixed.scalar_type(), " of shape ", fixed.sizes());
  const int64_t decided = fixed.defined() ? (fixed == 0).sum().item<int64_t>() : heads;
  if (kind == Kind::kThreshold) {
    HEADKIT_CHECK(std::isfinite(threshold), operation, "a finite threshold", threshold);
    HEADKIT_CHECK(min_heads >= 0 && min_heads <= heads, operation,
                  c10::str("min_heads from 0 to ", heads), min_heads);
  } else if (kind == Kind::kTopK) {
    HEADKIT_CHECK(k >= 0 && k <= decided, operation, c10::str("k from 0 to ", decided), k);
  } else {
    HEADKIT_CHECK(std::isfinite(budget) && budget >= 0, operation, "a finite budget >= 0", budget);
    HEADKIT_CHECK(
        cost.defined() && cost.is_cpu() && cost.scalar_type() == at::kDouble && cost.dim() == 1 &&
            cost.size(0) == heads && cost.isfinite().all().item<bool>() &&
            (cost > 0).all().item<bool>(),
        operation, c10::str("finite float64 costs > 0 of shape [", heads, "]"),
        cost.defined() ? c10::str(cost.scalar_type(), " of shape ", cost.sizes()) : "none");
  }
}

bool DecisionRule::is_decided(int64_t head) const {
  return !fixed.defined() || fixed.const_data_ptr<int8_t>()[head] == 0;
}

double DecisionRule::score(std::span<const double> logits, int64_t head) const {
  const double logit = logits[static_cast<size_t>(head)];
  return kind == Kind::kBudget ? logit / cost.const_data_ptr<double>()[head] : logit;
}

std::vector<char> DecisionRule::open(std::span<const double> logits) const {
  const auto heads = static_cast<int64_t>(logits.size());
  std::vector<char> result(logits.size(), 0);
  if (kind == Kind::kThreshold) {
    const std::vector<int8_t> none(fixed.defined() ? 0 : logits.size(), 0);
    const int8_t* const is_fixed = fixed.defined() ? fixed.const_data_ptr<int8_t>() : none.data();
    std::vector<HeadReason> reason(logits.size());
    decide_heads(logits.data(), {is_fixed, heads, threshold, min_heads}, reason.data());
    for (size_t h = 0; h < logits.size(); ++h) result[h] = reason[h] != HeadReason::kClosed;
    return result;
  }
  std::vector<int64_t> order;
  for (int64_t h = 0; h < heads; ++h) {
    if (is_decided(h)) {
      order.push_back(h);
    } else {
      result[static_cast<size_t>(h)] = fixed.const_data_ptr<int8_t>()[h] > 0;
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return score(logits, a) > score(logits, b); });
  double spent = 0;
  for (size_t place = 0; place < order.size(); ++place) {
    if (kind == Kind::kTopK && static_cast<int64_t>(place) >= k) break;
    if (kind == Kind::kBudget) {
      spent += cost.const_data_ptr<double>()[order[place]];
      if (spent > budget) break;
    }
    result[static_cast<size_t>(order[place])] = 1;
  }
  return result;
}

std::string DecisionRule::name() const {
  switch (kind) {
    case Kind::kThreshold:
      return "threshold";
    case Kind::kTopK:
      return "top_k";
    case Kind::kBudget:
      return "budget";
  }
  return {};
}

DecisionRule::Kind decision_rule_kind(const std::string& name) {
  for (const auto kind :
       {DecisionRule::Kind::kThreshold, DecisionRule::Kind::kTopK, DecisionRule::Kind::kBudget}) {
    if (DecisionRule{.kind = kind}.name() == name) return kind;
  }
  throw std::invalid_argument(
      error_message("decision_rule", "a rule of threshold, top_k, budget", name));
}

}  // namespace headkit
