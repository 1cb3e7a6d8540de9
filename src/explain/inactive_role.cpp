#include <ATen/ATen.h>

#include "explain/text_roles.h"
#include "headkit/explain/role_sums.h"

namespace headkit {
namespace {

class InactiveRole final : public RoleAccumulator {
 public:
  InactiveRole(const HeadLayout& layout, std::optional<double> threshold)
      : sums_("inactive", "", layout), threshold_(threshold) {}

  bool needs_output_norms() const override { return true; }

  void add(const RoleRows& rows) override {
    const SampleAttention& attention = rows.attention;
    const at::Tensor valid = attention.query_valid.to(at::kFloat);
    const at::Tensor norms = attention.output_norm.matmul(valid).to(at::kDouble).contiguous();
    const double count = valid.sum().item<double>();
    for (int64_t h = 0; h < rows.heads(); ++h) {
      RoleSums::Sums& sums =
          sums_.of(attention.sample, attention.layer, attention.heads[static_cast<size_t>(h)]);
      sums.score += norms.const_data_ptr<double>()[h];
      sums.rows += count;
    }
  }

  void merge(const RoleAccumulator& other) override {
    sums_.merge(dynamic_cast<const InactiveRole&>(other).sums_);
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    // By the mean over the heads of the layer; those without rows are NaN and do not count.
    std::vector<RoleScore> scores =
        sums_.scores(end, {.uniform = false}, "", [](const at::Tensor& means) {
          const at::Tensor of_layer = means.nanmean({-1}, /*keepdim=*/true);
          return at::where(of_layer.gt(0), means / of_layer, at::ones_like(means));
        });
    std::vector<double> all;
    for (const RoleScore& score : scores) {
      if (score.assessed) all.push_back(score.score);
    }
    for (RoleScore& score : scores) {
      if (!score.assessed) continue;
      const auto below =
          std::count_if(all.begin(), all.end(), [&](double other) { return other < score.score; });
      score.details.emplace_back("quantile",
                                 static_cast<double>(below) / static_cast<double>(all.size()));
      score.threshold = threshold_;
      judge(score);
    }
    add_scores(scores, table);
  }

 private:
  RoleSums sums_;
  std::optional<double> threshold_;
};

}  // namespace

RolePointer inactive_role(const HeadLayout& layout, std::optional<double> threshold) {
  return std::make_unique<InactiveRole>(layout, threshold);
}

}  // namespace headkit
