#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "headkit/explain/role_accumulator.h"

namespace headkit::testing {

/// Attention of one block and sample that a test wrote by hand, as accumulators are shown it.
class GivenRows {
 public:
  /// `probabilities` [h, T, S]; `allowed` bool [T, S], by default all.
  GivenRows(int64_t sample, int64_t layer, const at::Tensor& probabilities,
            at::Tensor allowed = {}) {
    attention_.sample = sample;
    attention_.layer = layer;
    attention_.probabilities = probabilities.to(at::kFloat).contiguous();
    attention_.heads.resize(probabilities.size(0));
    std::iota(attention_.heads.begin(), attention_.heads.end(), 0);
    if (!allowed.defined()) {
      allowed = at::ones({probabilities.size(1), probabilities.size(2)}, at::kBool);
    }
    attention_.key_allowed = allowed.unsqueeze(0).contiguous();
    attention_.query_valid = allowed.any(-1);
    attention_.batch = nothing();
  }
  GivenRows& cross() {
    attention_.cross = true;
    return *this;
  }

  /// Of this object: keep it as long as the rows.
  RoleRows rows() const { return RoleRows(attention_, {}); }

 private:
  static const Batch* nothing() {
    static const Batch batch;
    return &batch;
  }

  SampleAttention attention_;
};

/// Rows of one head: `weight` on the key of each query, the rest evenly on all others. A key of -1
/// is even attention.
inline at::Tensor pointing_at(const std::vector<int64_t>& keys, int64_t key_count, double weight) {
  const auto queries = static_cast<int64_t>(keys.size());
  at::Tensor rows =
      at::full({queries, key_count}, 1.0 / static_cast<double>(key_count), at::kDouble);
  for (int64_t i = 0; i < queries; ++i) {
    if (keys[i] < 0) continue;
    rows[i].fill_((1 - weight) / static_cast<double>(key_count - 1));
    rows[i][keys[i]] = weight;
  }
  return rows;
}

/// What an accumulator says of one layer of `heads` heads.
inline RoleTable table_of(const RoleAccumulator& accumulator, int64_t heads,
                          const RoleMeasure& measure = {}, int64_t layers = 1) {
  RoleTable table;
  table.layout = {layers, heads, 8, 8 * heads, 0};
  table.heads.assign(layers, std::vector<std::vector<RoleScore>>(heads));
  accumulator.finish({table.layout, HeadMask(at::ones({layers, heads}, at::kBool)), measure},
                     table);
  table.rank();
  return table;
}

inline HeadLayout layout_of(int64_t heads, int64_t layers = 1) {
  return {layers, heads, 8, 8 * heads, 0};
}

/// The null of that name; NaN if there is none.
inline double null_of(const RoleScore& score, const std::string& name) {
  for (const RoleNull& null : score.nulls) {
    if (null.name == name) return null.value;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

inline double detail_of(const RoleScore& score, const std::string& name) {
  for (const auto& [key, value] : score.details) {
    if (key == name) return value;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

/// Whether two accumulators that saw every second sample each, merged, say what one says that saw
/// all: scores and intervals exactly, nulls to rounding. `make` makes one, `show` shows it a
/// sample.
inline void expect_merging_is_exact(
    const std::function<std::unique_ptr<RoleAccumulator>()>& make,
    const std::function<void(RoleAccumulator&, int64_t sample)>& show, int64_t samples,
    int64_t heads) {
  const auto whole = make(), some = make(), others = make();
  for (int64_t sample = 0; sample < samples; ++sample) {
    show(*whole, sample);
    show(sample % 3 == 0 ? *some : *others, sample);
  }
  others->merge(*some);
  const RoleTable a = table_of(*whole, heads), b = table_of(*others, heads);
  for (int64_t head = 0; head < heads; ++head) {
    ASSERT_EQ(a.heads[0][head].size(), b.heads[0][head].size());
    for (const RoleScore& score : a.heads[0][head]) {
      const RoleScore* merged = b.find(0, head, score.role, score.variant);
      ASSERT_NE(merged, nullptr) << score.role << score.variant;
      EXPECT_EQ(score.assessed, merged->assessed);
      if (score.assessed) EXPECT_DOUBLE_EQ(score.score, merged->score) << score.role;
      EXPECT_EQ(score.lower, merged->lower) << score.role;
      EXPECT_EQ(score.rows, merged->rows);
      for (const RoleNull& null : score.nulls) {
        EXPECT_NEAR(null.value, null_of(*merged, null.name), 1e-9) << score.role << null.name;
      }
    }
  }
}

}  // namespace headkit::testing
