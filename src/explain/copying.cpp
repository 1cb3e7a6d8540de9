#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <random>

#include "explain/text_roles.h"
#include "headkit/core/error.h"
#include "headkit/explain/role_sums.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr char kRole[] = "copying";

// W_V [D, dh] and W_O [dh, D] of a head, in the convention x W.
struct HeadMaps {
  HeadId id;
  at::Tensor value, output;
};

std::vector<HeadMaps> maps_of(GatedModel& model) {
  std::vector<HeadMaps> maps;
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  for (int64_t l = 0; l < layout.layers; ++l) {
    const std::vector<int64_t> heads = present.layer_heads(l);
    if (heads.empty()) continue;
    const AttentionWeights weights = model.attention(l);
    const std::vector<int64_t> kv = layout.kv_places_of(heads);
    const int64_t dh = layout.head_dim;
    for (size_t i = 0; i < heads.size(); ++i) {
      const auto place = static_cast<int64_t>(i);
      maps.push_back({{l, heads[i]},
                      weights.v.narrow(0, kv[i] * dh, dh).t().to(at::kCPU, at::kDouble),
                      weights.o.narrow(1, place * dh, dh).t().to(at::kCPU, at::kDouble)});
    }
  }
  return maps;
}

// `both` = W_U W_E, [D, D].
double copying_score(const at::Tensor& output, const at::Tensor& both, const at::Tensor& value) {
  const at::Tensor values = at::linalg_eigvals(output.matmul(both).matmul(value));
  const double size = values.abs().sum().item<double>();
  return size > 0 ? at::real(values).sum().item<double>() / size : 0;
}

}  // namespace

void add_copying(GatedModel& model, const RoleMeasure& measure, const at::Tensor& embedding,
                 const at::Tensor& unembedding, RoleTable& table) {
  const c10::NoGradGuard no_grad;
  const HeadLayout& layout = table.layout;
  std::string reason;
  if (!embedding.defined() || !unembedding.defined()) {
    reason = "the model has no known unembedding";
  } else if (embedding.dim() != 2 || embedding.size(1) != layout.model_dim ||
             unembedding.sizes() != embedding.sizes()) {
    reason = "embedding and unembedding are not of the width of the heads";
  }
  std::vector<RoleScore> scores(static_cast<size_t>(layout.total_heads()));
  for (RoleScore& score : scores) {
    score.role = kRole;
    score.reason = reason.empty() ? "the head was removed" : reason;
  }
  if (reason.empty()) {
    const std::vector<HeadMaps> maps = maps_of(model);
    const at::Tensor both = unembedding.detach()
                                .to(at::kCPU, at::kFloat)
                                .t()
                                .matmul(embedding.detach().to(at::kCPU, at::kFloat))
                                .to(at::kDouble);
    std::optional<double> null_low, null_high;
    if (maps.size() > 1 && measure.draws > 0) {
      std::mt19937_64 random(measure.seed);
      const auto draw = [&](size_t below) {
        return static_cast<size_t>(draw_below(random, static_cast<int64_t>(below)));
      };
      std::vector<double> unrelated;
      for (int64_t i = 0; i < measure.draws; ++i) {
        const size_t one = draw(maps.size());
        const size_t other = (one + 1 + draw(maps.size() - 1)) % maps.size();
        unrelated.push_back(copying_score(maps[one].output, both, maps[other].value));
      }
      const at::Tensor sorted = std::get<0>(at::tensor(unrelated, at::kDouble).sort());
      null_low = percentile(sorted, 0.025).item<double>();
      null_high = percentile(sorted, 0.975).item<double>();
    }
    for (const HeadMaps& head : maps) {
      RoleScore& score = scores[static_cast<size_t>(head.id.layer * layout.heads + head.id.head)];
      score.reason.clear();
      score.score = copying_score(head.output, both, head.value);
      if (null_high) {
        score.nulls.push_back({"unrelated_heads", *null_high});
        score.details.emplace_back("unrelated_heads_lower", *null_low);
      }
    }
  }
  for (RoleScore& score : scores) judge(score);
  add_scores(scores, table);
}

}  // namespace headkit
