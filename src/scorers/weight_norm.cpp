#include "headkit/scorers/weight_norm.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "weight_norm";

// [rows, D] by heads, [h, dh, D], in double on CPU; `places` picks the slice of each head.
at::Tensor slices(const at::Tensor& weight, int64_t head_dim, const std::vector<int64_t>& places) {
  return weight.detach()
      .to(at::kCPU, at::kDouble)
      .reshape({-1, head_dim, weight.size(1)})
      .index_select(0, at::tensor(places, at::kLong));
}

}  // namespace

HeadScores WeightNormScorer::score(GatedModel& model, const DataSource&, const Objective&,
                                   const ScoreOptions& options) const {
  check_score_options(options);
  const std::string& kind = options_.kind;
  HEADKIT_CHECK(kind == "output" || kind == "ov" || kind == "qk" || kind == "all", kName,
                "kind output, ov, qk or all", "'", kind, "'");
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  at::Tensor values = at::zeros({layout.layers, layout.heads}, at::kDouble);
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    const std::vector<int64_t> heads = present.layer_heads(layer);
    if (heads.empty()) continue;
    const AttentionWeights weights = model.attention(layer);
    std::vector<int64_t> own(heads.size());
    for (size_t place = 0; place < own.size(); ++place) own[place] = static_cast<int64_t>(place);
    const std::vector<int64_t> shared = layout.kv_places_of(heads);
    const at::Tensor q = slices(weights.q, layout.head_dim, own);
    const at::Tensor k = slices(weights.k, layout.head_dim, shared);
    const at::Tensor v = slices(weights.v, layout.head_dim, shared);
    const at::Tensor o = slices(weights.o.t(), layout.head_dim, own);
    const auto norm = [](const at::Tensor& each) { return each.flatten(1).norm(2, {1}); };
    at::Tensor found;
    if (kind == "output") found = norm(o);
    if (kind == "ov") found = norm(o.transpose(1, 2).matmul(v));
    if (kind == "qk") found = norm(q.transpose(1, 2).matmul(k));
    if (kind == "all") {
      found = (norm(q).square() + norm(k).square() + norm(v).square() + norm(o).square()).sqrt();
    }
    values[layer].index_copy_(0, at::tensor(heads, at::kLong), found);
  }
  HeadScores scores;
  scores.metric = kName;
  ScoreOptions without_interval = options;
  without_interval.bootstrap = 0;
  summarise_scores(without_interval, values, 0, {}, scores);
  scores.settings = Json{{"kind", kind}, {"normalization", options.normalization}}.dump();
  return scores;
}

}  // namespace headkit
