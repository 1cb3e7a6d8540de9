#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>

#include "explain/row_cursor.h"
#include "explain/text_roles.h"
#include "headkit/explain/role_sums.h"

namespace headkit {
namespace {

// Distances 0, 1, 2 to 3, 4 to 7 ... 64 and more: the first of each.
constexpr std::array<int64_t, 8> kFirst{0, 1, 2, 4, 8, 16, 32, 64};
constexpr size_t kBins = kFirst.size();

float sum_of(const float* values, int64_t first, int64_t last) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = first; j < last; ++j) sum += values[j];
  return sum;
}

class LocalRole final : public RoleAccumulator {
 public:
  explicit LocalRole(const HeadLayout& layout)
      : sums_("local", "", layout),
        by_distance_(static_cast<size_t>(layout.total_heads())),
        heads_(layout.heads) {}

  void add(const RoleRows& rows) override {
    if (!rows.same_tokens()) return;
    const SampleAttention& attention = rows.attention;
    const int64_t length = attention.query_valid.sum().item<int64_t>();
    const int64_t keys = rows.keys();
    const at::Tensor content = rows.special_keys.logical_not().to(at::kFloat);
    const at::Tensor places = at::arange(keys, at::kFloat);
    const at::Tensor distances = (places.unsqueeze(1) - places).abs_();
    // Of uniform attention, [1 or h, T].
    const at::Tensor mean_distance =
        (attention.key_allowed.to(at::kFloat) * distances).matmul(content).div_(rows.content_keys);
    const float* counted = content.const_data_ptr<float>();
    const float* distance = distances.const_data_ptr<float>();
    std::vector<float> room(static_cast<size_t>(keys));
    float* kept = room.data();
    for (int64_t h = 0; h < rows.heads(); ++h) {
      const int64_t head = attention.heads[static_cast<size_t>(h)];
      RoleSums::Sums& sums = sums_.of(attention.sample, attention.layer, head);
      RoleSums::Totals& totals = sums_.totals(attention.layer, head);
      auto& by_bin = by_distance_[static_cast<size_t>(attention.layer * heads_ + head)];
      const float* uniform = mean_distance.const_data_ptr<float>() +
                             (mean_distance.size(0) > 1 ? h * rows.queries() : 0);
      RowCursor row(rows, h);
      for (int64_t i = 0; i < rows.queries(); ++i) {
        row.move_to(i);
        if (!row.valid) continue;
        totals.excluded += row.special_mass;
        totals.seen += 1;
        const double left = 1 - row.special_mass;
        if (left < kLeastMass) {
          totals.dropped += 1;
          continue;
        }
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < keys; ++j) {
          kept[j] = row.weights[j] * counted[j];
          sum += kept[j] * distance[i * keys + j];
        }
        by_bin[0] += kept[i] / left;
        for (size_t bin = 1; bin < kBins; ++bin) {
          const int64_t nearest = kFirst[bin];
          const int64_t beyond = bin + 1 < kBins ? kFirst[bin + 1] : keys;
          if (i - nearest < 0 && i + nearest >= keys) break;
          const float before = sum_of(kept, std::max<int64_t>(0, i - beyond + 1),
                                      std::max<int64_t>(0, i - nearest + 1));
          const float after = sum_of(kept, std::min(keys, i + nearest), std::min(keys, i + beyond));
          by_bin[bin] += (before + after) / left;
        }
        sums.score += sum / left / static_cast<double>(length);
        sums.rows += 1;
        totals.uniform += uniform[i] / static_cast<double>(length);
      }
    }
  }

  void merge(const RoleAccumulator& other) override {
    const auto& from = dynamic_cast<const LocalRole&>(other);
    sums_.merge(from.sums_);
    for (size_t i = 0; i < by_distance_.size(); ++i) {
      for (size_t bin = 0; bin < kBins; ++bin) by_distance_[i][bin] += from.by_distance_[i][bin];
    }
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    std::vector<RoleScore> scores = sums_.scores(end, {});
    for (size_t i = 0; i < scores.size(); ++i) {
      if (!scores[i].assessed) continue;
      for (size_t bin = 0; bin < kBins; ++bin) {
        scores[i].details.emplace_back(c10::str("mass_from_", kFirst[bin]),
                                       by_distance_[i][bin] / static_cast<double>(scores[i].rows));
      }
    }
    add_scores(scores, table);
  }

 private:
  RoleSums sums_;
  std::vector<std::array<double, kBins>> by_distance_;
  int64_t heads_;
};

}  // namespace

RolePointer local_role(const HeadLayout& layout) { return std::make_unique<LocalRole>(layout); }

}  // namespace headkit
