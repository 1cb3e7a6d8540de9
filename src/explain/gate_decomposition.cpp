#include "headkit/explain/gate_decomposition.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "gate_decomposition";

std::span<const double> row_of(const at::Tensor& values) {
  return {values.const_data_ptr<double>(), static_cast<size_t>(values.numel())};
}

double worst(const at::Tensor& gaps) { return gaps.abs().max().item<double>(); }

}  // namespace

GateDecomposition::GateDecomposition(LinearLogits gate, const at::Tensor& hidden,
                                     const at::Tensor& valid)
    : gate_(std::move(gate)) {
  gate_.check(kOperation);
  const int64_t width = gate_.width();
  HEADKIT_CHECK(hidden.defined() && hidden.dim() == 2 && hidden.size(1) == width, kOperation,
                c10::str("token states of shape [tokens, ", width, "]"),
                hidden.defined() ? c10::str("shape ", hidden.sizes()) : "none");
  HEADKIT_CHECK(!valid.defined() || (valid.dim() == 1 && valid.size(0) == hidden.size(0)),
                kOperation, c10::str("valid tokens of shape [", hidden.size(0), "]"),
                valid.defined() ? c10::str("shape ", valid.sizes()) : "none");
  hidden_ = hidden.detach().to(at::kCPU, at::kDouble);
  valid_ = valid.defined() ? valid.detach().to(at::kCPU, at::kBool)
                           : at::ones({hidden.size(0)}, at::kBool);
  const at::Tensor places = valid_.nonzero().flatten();
  tokens_.assign(places.const_data_ptr<int64_t>(),
                 places.const_data_ptr<int64_t>() + places.numel());
  features_ = gate_.features_of(hidden_.unsqueeze(0), valid_.unsqueeze(0))[0];
  logits_ = gate_.logits(hidden_.unsqueeze(0), valid_.unsqueeze(0))[0].contiguous();
  open_ = gate_.rule.open(row_of(logits_));
  const at::Tensor deviation = hidden_.index_select(0, places) - gate_.reference.slice(0, 0, width);
  token_parts_ = deviation.matmul(gate_.weight.slice(1, 0, width).t())
                     .div(static_cast<double>(std::max<size_t>(1, tokens_.size())))
                     .t()
                     .contiguous();
  feature_parts_ = (gate_.weight * (features_ - gate_.reference)).contiguous();
}

at::Tensor GateDecomposition::scalar_parts() const {
  return feature_parts_.slice(1, gate_.width());
}

at::Tensor GateDecomposition::joint(int64_t index) const {
  const int64_t width = gate_.width();
  const at::Tensor places = valid_.nonzero().flatten();
  return (hidden_.index_select(0, places) - gate_.reference.slice(0, 0, width)) *
         gate_.weight[index].slice(0, 0, width) /
         static_cast<double>(std::max<size_t>(1, tokens_.size()));
}

double GateDecomposition::residual(int64_t index) const {
  const at::Tensor whole = logits_[index] - gate_.base[index];
  const at::Tensor scalars = scalar_parts()[index].sum();
  const at::Tensor by_token = whole - token_parts_[index].sum() - scalars;
  const at::Tensor by_feature = whole - feature_parts_[index].sum();
  const at::Tensor by_both = whole - joint(index).sum() - scalars;
  return worst(at::stack({by_token, by_feature, by_both}));
}

std::optional<int64_t> GateDecomposition::rival(int64_t index) const {
  const std::span<const double> logits = row_of(logits_);
  const bool is_open = open_[static_cast<size_t>(index)] != 0;
  std::optional<int64_t> best;
  for (int64_t m = 0; m < static_cast<int64_t>(logits.size()); ++m) {
    if (m == index || !gate_.rule.is_decided(m) || (open_[static_cast<size_t>(m)] != 0) == is_open)
      continue;
    const double gap = best ? gate_.rule.score(logits, m) - gate_.rule.score(logits, *best) : 0;
    if (!best || (is_open ? gap > 0 : gap < 0)) best = m;
  }
  return best;
}

GateCut GateDecomposition::cut(int64_t index) const {
  GateCut cut;
  const DecisionRule& rule = gate_.rule;
  if (!rule.is_decided(index)) return cut;
  const std::span<const double> logits = row_of(logits_);
  const double own = rule.score(logits, index);
  cut.rank = 1;
  std::optional<int64_t> last, first;
  for (int64_t m = 0; m < static_cast<int64_t>(logits.size()); ++m) {
    if (m == index || !rule.is_decided(m)) continue;
    const double score = rule.score(logits, m);
    if (score > own || (score == own && m < index)) ++*cut.rank;
    if (open_[static_cast<size_t>(m)] != 0) {
      if (!last || score < rule.score(logits, *last)) last = m;
    } else if (!first || score > rule.score(logits, *first)) {
      first = m;
    }
  }
  for (const std::optional<int64_t>& m : {last, first}) {
    if (!m) continue;
    const HeadId id = gate_.heads[static_cast<size_t>(*m)];
    cut.rivals.push_back(
        {id.layer, id.head, logits[static_cast<size_t>(*m)], open_[static_cast<size_t>(*m)] != 0});
  }
  at::Tensor direction = gate_.weight[index];
  if (rule.kind == DecisionRule::Kind::kThreshold) {
    cut.margin = own - rule.threshold;
  } else {
    const std::optional<int64_t> other = open_[static_cast<size_t>(index)] != 0 ? first : last;
    if (!other) return cut;
    cut.margin = own - rule.score(logits, *other);
    direction = rule.kind == DecisionRule::Kind::kBudget
                    ? direction / rule.cost[index] - gate_.weight[*other] / rule.cost[*other]
                    : direction - gate_.weight[*other];
  }
  const double norm = direction.norm().item<double>();
  if (norm > 0) cut.distance = std::abs(*cut.margin) / norm;
  return cut;
}

std::vector<char> GateDecomposition::open_without(const std::vector<int64_t>& tokens,
                                                  at::Tensor* logits) const {
  at::Tensor moved = hidden_.clone();
  for (const int64_t token : tokens) {
    HEADKIT_CHECK_INDEX(token >= 0 && token < hidden_.size(0), kOperation,
                        c10::str("tokens from 0 to ", hidden_.size(0) - 1), token);
    moved[token].copy_(gate_.reference.slice(0, 0, gate_.width()));
  }
  const at::Tensor z = gate_.logits(moved.unsqueeze(0), valid_.unsqueeze(0))[0].contiguous();
  if (logits != nullptr) *logits = z;
  return gate_.rule.open(row_of(z));
}

// For each open head the fewest tokens whose move takes its logit below the threshold; tokens + 1
// where none does.
std::vector<int64_t> GateDecomposition::fewest_to_cross() const {
  const auto heads = static_cast<int64_t>(gate_.heads.size());
  const auto count = static_cast<int64_t>(tokens_.size());
  std::vector<int64_t> fewest;
  for (int64_t m = 0; m < heads; ++m) {
    if (!gate_.rule.is_decided(m) || open_[static_cast<size_t>(m)] == 0) continue;
    const double* const own = token_parts_.const_data_ptr<double>() + m * count;
    std::vector<double> parts(own, own + count);
    std::sort(parts.begin(), parts.end(), std::greater<>());
    double left = logits_.const_data_ptr<double>()[m];
    int64_t moved = 0;
    while (moved < count && left >= gate_.rule.threshold) {
      left -= parts[static_cast<size_t>(moved++)];
    }
    fewest.push_back(left < gate_.rule.threshold ? moved : count + 1);
  }
  std::sort(fewest.begin(), fewest.end());
  return fewest;
}

// Whether the floor can open a closed head only once `tokens` tokens were moved.
bool GateDecomposition::floor_needs(int64_t tokens) const {
  const int64_t open = std::count(open_.begin(), open_.end(), 1);
  const int64_t closing = open - gate_.rule.min_heads + 1;
  if (gate_.rule.min_heads == 0) return true;
  if (closing <= 0) return false;
  const std::vector<int64_t> fewest = fewest_to_cross();
  return closing > static_cast<int64_t>(fewest.size()) ||
         fewest[static_cast<size_t>(closing - 1)] >= tokens;
}

std::optional<GateFlip> GateDecomposition::flip(int64_t index) const {
  const DecisionRule& rule = gate_.rule;
  if (!rule.is_decided(index)) return std::nullopt;
  const auto heads = static_cast<int64_t>(gate_.heads.size());
  const auto count = static_cast<int64_t>(tokens_.size());
  const bool was_open = open_[static_cast<size_t>(index)] != 0;
  const double own = logits_.const_data_ptr<double>()[index];
  // On by the floor, the head is there for beating others, as under top k.
  const bool by_threshold =
      rule.kind == DecisionRule::Kind::kThreshold && was_open == (own >= rule.threshold);

  at::Tensor support = token_parts_[index].clone();
  if (!by_threshold) {
    const std::optional<int64_t> other = rival(index);
    if (rule.kind == DecisionRule::Kind::kBudget) support /= rule.cost[index];
    if (other) {
      support -= rule.kind == DecisionRule::Kind::kBudget ? token_parts_[*other] / rule.cost[*other]
                                                          : token_parts_[*other];
    }
  }
  if (!was_open) support = support.neg();
  const double* const value = support.const_data_ptr<double>();
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return value[a] > value[b]; });
  while (!order.empty() && value[order.back()] <= 0) order.pop_back();

  const auto first = [&](int64_t moves) {
    std::vector<int64_t> places;
    for (int64_t i = 0; i < moves; ++i) places.push_back(tokens_[static_cast<size_t>(order[i])]);
    return places;
  };
  const auto flips = [&](int64_t moves) {
    return (open_without(first(moves))[static_cast<size_t>(index)] != 0) != was_open;
  };

  // Sums of parts say where to look; only what the gate itself says counts.
  const auto limit = static_cast<int64_t>(order.size());
  int64_t moves = limit + 1, crossed = limit + 1;
  std::vector<double> left(row_of(logits_).begin(), row_of(logits_).end());
  const double* const parts = token_parts_.const_data_ptr<double>();
  for (int64_t i = 1; i <= limit; ++i) {
    for (int64_t m = 0; m < heads; ++m)
      left[static_cast<size_t>(m)] -= parts[m * count + order[i - 1]];
    const bool above = left[static_cast<size_t>(index)] >= rule.threshold;
    if (crossed > limit && above != was_open) crossed = i;
    if ((rule.open(left)[static_cast<size_t>(index)] != 0) != was_open) {
      moves = i;
      break;
    }
  }
  if (moves > limit && !gate_.features.empty()) moves = 1;
  while (moves <= limit && !flips(moves)) ++moves;
  while (moves > 1 && moves <= limit && flips(moves - 1)) --moves;

  GateFlip flip;
  flip.verified = moves <= limit || !flips(limit);
  if (moves <= limit) flip.removed = first(moves);
  flip.minimal = moves <= limit && by_threshold && gate_.features.empty() && moves == crossed &&
                 (was_open || floor_needs(moves));
  at::Tensor after;
  open_without(first(std::min(moves, limit)), &after);
  flip.logit = after[index].item<double>();
  return flip;
}

std::optional<double> GateDecomposition::control_share() const {
  const int64_t width = gate_.width();
  const at::Tensor state = features_.slice(0, 0, width) - gate_.reference.slice(0, 0, width);
  const double whole = state.square().sum().item<double>();
  if (whole == 0) return std::nullopt;
  const auto [u, s, vh] = at::linalg_svd(gate_.weight.slice(1, 0, width), false);
  const double largest = s.numel() > 0 ? s.max().item<double>() : 0;
  const double floor = largest * std::numeric_limits<double>::epsilon() *
                       static_cast<double>(std::max(gate_.weight.size(0), width));
  const at::Tensor seen = vh.index_select(0, (s > floor).nonzero().flatten()).matmul(state);
  return std::min(1.0, seen.square().sum().item<double>() / whole);
}

}  // namespace headkit
