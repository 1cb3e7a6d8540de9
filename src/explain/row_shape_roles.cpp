#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "explain/row_cursor.h"
#include "explain/text_roles.h"
#include "headkit/explain/role_sums.h"

namespace headkit {
namespace {

class RowShapeRoles final : public RoleAccumulator {
 public:
  explicit RowShapeRoles(const HeadLayout& layout)
      : broad_("broad", "", layout), confident_("confident", "", layout) {}

  void add(const RoleRows& rows) override {
    if (rows.keys() == 0) return;
    const int64_t last = rows.keys() - 1;
    const bool without_end = rows.special_keys[last].item<bool>();
    for (int64_t h = 0; h < rows.heads(); ++h) {
      const SampleAttention& attention = rows.attention;
      const int64_t head = attention.heads[static_cast<size_t>(h)];
      RoleSums::Sums& broad = broad_.of(attention.sample, attention.layer, head);
      RoleSums::Sums& confident = confident_.of(attention.sample, attention.layer, head);
      RoleSums::Totals& of_broad = broad_.totals(attention.layer, head);
      RoleSums::Totals& of_confident = confident_.totals(attention.layer, head);
      RowCursor row(rows, h);
      for (int64_t i = 0; i < rows.queries(); ++i) {
        row.move_to(i);
        if (!row.valid) continue;
        if (row.keys_allowed >= 2) {
          broad.score += row.entropy / std::log(row.keys_allowed);
          broad.rows += 1;
          of_broad.uniform += 1;
        }
        float largest = row.largest;
        const bool end_out = without_end && row.allowed[last];
        if (end_out && row.keys_allowed < 2) continue;
        if (end_out && row.weights[last] == largest && row.ties < 2) {
          largest = *std::max_element(row.weights, row.weights + last);
        }
        confident.score += largest;
        confident.rows += 1;
        of_confident.uniform += 1 / row.keys_allowed;
        of_confident.excluded += end_out ? row.weights[last] : 0;
        of_confident.seen += 1;
      }
    }
  }

  void merge(const RoleAccumulator& other) override {
    const auto& from = dynamic_cast<const RowShapeRoles&>(other);
    broad_.merge(from.broad_);
    confident_.merge(from.confident_);
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    add_scores(broad_.scores(end, {}, "no query that may see two keys"), table);
    add_scores(confident_.scores(end, {}), table);
  }

 private:
  RoleSums broad_, confident_;
};

}  // namespace

RolePointer row_shape_roles(const HeadLayout& layout) {
  return std::make_unique<RowShapeRoles>(layout);
}

}  // namespace headkit
