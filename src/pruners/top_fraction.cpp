#include "headkit/pruners/top_fraction.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "headkit/core/error.h"

namespace headkit {
namespace {

HeadMask candidates_or_all(const HeadScores& scores, const HeadMask& candidates) {
  const int64_t layers = scores.values.size(0);
  const int64_t heads = scores.values.size(1);
  if (!candidates.keep().defined()) return HeadMask::all(layers, heads);
  HEADKIT_CHECK(
      candidates.layers() == layers && candidates.heads() == heads, "prune",
      "candidates of the scores' size, " + std::to_string(layers) + " x " + std::to_string(heads),
      candidates.layers(), " x ", candidates.heads());
  return candidates;
}

class Ranking {
 public:
  explicit Ranking(const HeadScores& scores)
      : values_(scores.values.contiguous()), heads_(values_.size(1)) {}

  // True if `a` goes before `b` when heads are removed.
  bool operator()(HeadId a, HeadId b) const {
    const double score_a = at_(a);
    const double score_b = at_(b);
    if (score_a != score_b) return score_a < score_b;
    return a.layer != b.layer ? a.layer > b.layer : a.head > b.head;
  }

 private:
  double at_(HeadId id) const {
    return values_.const_data_ptr<double>()[id.layer * heads_ + id.head];
  }
  at::Tensor values_;
  int64_t heads_;
};

std::vector<HeadId> layer_order(const Ranking& ranking, const HeadMask& candidates, int64_t layer) {
  std::vector<HeadId> order;
  for (int64_t head : candidates.layer_heads(layer)) order.push_back({layer, head});
  std::sort(order.begin(), order.end(), ranking);
  return order;
}

HeadMask without(const HeadMask& mask, const std::vector<HeadId>& order, int64_t count) {
  at::Tensor keep = mask.keep().clone();
  for (int64_t i = 0; i < count; ++i) keep[order[i].layer][order[i].head] = false;
  return HeadMask(keep);
}

}  // namespace

int64_t kept_heads(double keep, int64_t total, KeepRounding rounding) {
  HEADKIT_CHECK(keep >= 0 && keep <= 1, "prune", "a share of heads to keep in [0, 1]", keep);
  // The share is a decimal that binary misses: 0.145 of 100 heads is 14.499999999999998.
  constexpr double kSlack = 1e-9;
  const double exact = keep * static_cast<double>(total);
  double kept = std::floor(exact + 0.5 + kSlack);
  if (rounding == KeepRounding::kUp) kept = std::ceil(exact - kSlack);
  if (rounding == KeepRounding::kDown) kept = std::floor(exact + kSlack);
  return std::clamp<int64_t>(static_cast<int64_t>(kept), 0, total);
}

std::vector<HeadId> removal_order(const HeadScores& scores, int64_t min_per_layer,
                                  const HeadMask& candidates) {
  scores.check("prune");
  HEADKIT_CHECK(min_per_layer >= 0, "prune", "min_per_layer of at least 0", min_per_layer);
  const HeadMask allowed = candidates_or_all(scores, candidates);
  const Ranking ranking(scores);
  std::vector<HeadId> order;
  for (int64_t layer = 0; layer < allowed.layers(); ++layer) {
    std::vector<HeadId> heads = layer_order(ranking, allowed, layer);
    const int64_t removable =
        std::max<int64_t>(static_cast<int64_t>(heads.size()) - min_per_layer, 0);
    order.insert(order.end(), heads.begin(), heads.begin() + removable);
  }
  std::sort(order.begin(), order.end(), ranking);
  return order;
}

HeadMask prune_top_fraction(const HeadScores& scores, const TopFractionOptions& options) {
  const std::vector<HeadId> order =
      removal_order(scores, options.min_per_layer, options.candidates);
  const HeadMask allowed = candidates_or_all(scores, options.candidates);
  const int64_t floor = allowed.count() - static_cast<int64_t>(order.size());
  if (options.per_layer) {
    const int64_t kept = kept_heads(options.keep, allowed.heads(), options.rounding);
    HEADKIT_CHECK(options.min_per_layer <= kept, "prune",
                  "min_per_layer of at most the " + std::to_string(kept) + " heads a layer keeps",
                  options.min_per_layer);
    const Ranking ranking(scores);
    HeadMask mask = allowed;
    for (int64_t layer = 0; layer < allowed.layers(); ++layer) {
      const std::vector<HeadId> heads = layer_order(ranking, allowed, layer);
      const int64_t excess = static_cast<int64_t>(heads.size()) - kept;
      mask = without(mask, heads, std::max<int64_t>(excess, 0));
    }
    return mask;
  }
  const int64_t kept =
      kept_heads(options.keep, allowed.layers() * allowed.heads(), options.rounding);
  HEADKIT_CHECK(floor <= kept, "prune",
                "a floor that fits into the " + std::to_string(kept) + " heads to keep", floor,
                " heads that may not go (min_per_layer = ", options.min_per_layer, ")");
  return without(allowed, order, std::max<int64_t>(allowed.count() - kept, 0));
}

}  // namespace headkit
