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

// Distances 0, 1, 2 to 3, 4 to 7 ... 64 and more.
constexpr int64_t kBins = 8;
int64_t bin_of(int64_t distance) {
  int64_t bin = 0;
  while (distance > 0 && bin + 1 < kBins) {
    distance /= 2;
    ++bin;
  }
  return bin;
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
    // Content keys 1, others 0; distances and bins from the diagonal on.
    const at::Tensor content = rows.special_keys.logical_not().to(at::kFloat);
    const float* counted = content.const_data_ptr<float>();
    std::vector<float> distance(static_cast<size_t>(2 * rows.keys() + 1));
    std::vector<int64_t> bins(distance.size());
    for (int64_t d = -rows.keys(); d <= rows.keys(); ++d) {
      distance[static_cast<size_t>(d + rows.keys())] = static_cast<float>(std::abs(d));
      bins[static_cast<size_t>(d + rows.keys())] = bin_of(std::abs(d));
    }
    for (int64_t h = 0; h < rows.heads(); ++h) {
      const int64_t head = attention.heads[static_cast<size_t>(h)];
      RoleSums::Sums& sums = sums_.of(attention.sample, attention.layer, head);
      RoleSums::Totals& totals = sums_.totals(attention.layer, head);
      auto& by_bin = by_distance_[static_cast<size_t>(attention.layer * heads_ + head)];
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
        const float* from_here = distance.data() + rows.keys() - i;
        const int64_t* bin = bins.data() + rows.keys() - i;
        float sum = 0, seen = 0, far = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < rows.keys(); ++j) {
          sum += row.weights[j] * counted[j] * from_here[j];
        }
        for (int64_t j = 0; j < rows.keys(); ++j) {
          by_bin[static_cast<size_t>(bin[j])] += row.weights[j] * counted[j] / left;
        }
        for (int64_t j = 0; j < rows.keys(); ++j) {
          const float here = row.allowed[j] ? counted[j] : 0;
          seen += here;
          far += here * from_here[j];
        }
        sums.score += sum / left / static_cast<double>(length);
        sums.rows += 1;
        totals.uniform += far / seen / static_cast<double>(length);
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
      for (int64_t bin = 0; bin < kBins; ++bin) {
        const int64_t first = bin == 0 ? 0 : int64_t{1} << (bin - 1);
        std::string name = "mass_from_" + std::to_string(first);
        scores[i].details.emplace_back(std::move(name), by_distance_[i][static_cast<size_t>(bin)] /
                                                            static_cast<double>(scores[i].rows));
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
