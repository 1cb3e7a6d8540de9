#include <ATen/ATen.h>

#include <algorithm>
#include <array>

#include "explain/row_cursor.h"
#include "explain/text_roles.h"
#include "headkit/explain/role_sums.h"

namespace headkit {
namespace {

constexpr int64_t kFarthest = 8;

class OffsetRoles final : public RoleAccumulator {
 public:
  explicit OffsetRoles(const HeadLayout& layout) {
    for (int64_t d = -kFarthest; d <= kFarthest; ++d) {
      if (d != 0) positional_.push_back({d, RoleSums("positional", signed_text(d), layout)});
    }
    mass_.push_back({-1, RoleSums("previous_token", "", layout)});
    mass_.push_back({1, RoleSums("next_token", "", layout)});
    mass_.push_back({0, RoleSums("self", "", layout)});
  }

  void add(const RoleRows& rows) override {
    if (!rows.same_tokens()) return;
    for (int64_t h = 0; h < rows.heads(); ++h) {
      for (Offset& each : positional_) {
        add_head(rows, h, each, [](const RowCursor& row, int64_t key) {
          // A tie shares the hit; a random key of a row hits with 1 / keys.
          const double chance = 1 / row.keys_allowed;
          return Found{row.weights[key] == row.largest ? 1.0 / row.ties : 0.0, chance,
                       chance * (1 - chance)};
        });
      }
      for (Offset& each : mass_) {
        add_head(rows, h, each, [](const RowCursor& row, int64_t key) {
          const double mean = 1 / row.keys_allowed;
          return Found{row.weights[key], mean, row.squares / row.keys_allowed - mean * mean};
        });
      }
    }
  }

  void merge(const RoleAccumulator& other) override {
    const auto& from = dynamic_cast<const OffsetRoles&>(other);
    for (size_t i = 0; i < positional_.size(); ++i) {
      positional_[i].sums.merge(from.positional_[i].sums);
    }
    for (size_t i = 0; i < mass_.size(); ++i) mass_[i].sums.merge(from.mass_[i].sums);
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    for (const auto* group : {&positional_, &mass_}) {
      for (const Offset& each : *group) {
        add_scores(
            each.sums.scores(end, {.permuted_keys = true}, "no query may see a key at that offset"),
            table);
      }
    }
  }

 private:
  struct Offset {
    int64_t offset;
    RoleSums sums;
  };
  struct Found {
    double score, mean, variance;
  };

  static std::string signed_text(int64_t d) { return d > 0 ? c10::str("+", d) : c10::str(d); }

  template <typename Look>
  static void add_head(const RoleRows& rows, int64_t h, Offset& each, const Look& look) {
    const SampleAttention& attention = rows.attention;
    const int64_t head = attention.heads[static_cast<size_t>(h)];
    RoleSums::Sums& sums = each.sums.of(attention.sample, attention.layer, head);
    RoleSums::Totals& totals = each.sums.totals(attention.layer, head);
    RowCursor row(rows, h);
    const int64_t first = std::max<int64_t>(0, -each.offset);
    const int64_t last = std::min(rows.queries(), rows.queries() - each.offset);
    for (int64_t i = first; i < last; ++i) {
      row.move_to(i);
      const int64_t key = i + each.offset;
      if (!row.valid || !row.allowed[key]) continue;
      const Found found = look(row, key);
      sums.score += found.score;
      sums.rows += 1;
      totals.uniform += found.mean;
      totals.variance += found.variance;
    }
  }

  std::vector<Offset> positional_, mass_;
};

}  // namespace

RolePointer offset_roles(const HeadLayout& layout) { return std::make_unique<OffsetRoles>(layout); }

}  // namespace headkit
