#include "headkit/explain/gold_alignment.h"

#include <gtest/gtest.h>

#include <random>

#include "given_rows.h"

namespace headkit {
namespace {

using testing::GivenRows;
using testing::layout_of;
using testing::null_of;
using testing::pointing_at;
using testing::table_of;

constexpr int64_t kSequences = 60, kTokens = 12, kSources = 6;
const RoleMeasure kMeasure{.draws = 40, .bootstrap = 200};

// The last six tokens come from the first six, in a random order.
GoldAlignment gold_of(int64_t sequence) {
  std::mt19937_64 random(sequence);
  std::vector<int64_t> sources(kSources);
  for (int64_t i = 0; i < kSources; ++i) sources[i] = i;
  for (int64_t left = kSources; left > 1; --left)
    std::swap(sources[left - 1], sources[random() % left]);
  GoldAlignment gold{std::vector<int64_t>(kTokens, -1), {0, 1, 2, 3, 4, 5}};
  for (int64_t i = 0; i < kSources; ++i) gold.target_of_token[kSources + i] = sources[i];
  return gold;
}

std::vector<GoldAlignment> all_gold() {
  std::vector<GoldAlignment> all;
  for (int64_t i = 0; i < kSequences; ++i) all.push_back(gold_of(i));
  return all;
}

// Head 0 looks at the partner, and more at token 7, which is no candidate; head 1 six tokens back;
// head 2 at all alike.
at::Tensor planted(int64_t sequence) {
  const GoldAlignment gold = gold_of(sequence);
  std::vector<int64_t> back(kTokens, -1);
  for (int64_t i = kSources; i < kTokens; ++i) back[i] = i - kSources;
  at::Tensor partner = pointing_at(gold.target_of_token, kTokens, 0.9) * 0.4;
  partner.select(1, 7).add_(0.6);
  return at::stack({partner, pointing_at(back, kTokens, 0.9),
                    pointing_at(std::vector<int64_t>(kTokens, -1), kTokens, 0.9)});
}

TEST(GoldAlignmentTest, FindsThePlantedHeadAlone) {
  const auto role = gold_alignment_role(layout_of(3), all_gold(), kMeasure);
  int64_t back = 0;
  for (int64_t i = 0; i < kSequences; ++i) {
    role->add(GivenRows(i, 0, planted(i)).rows());
    const GoldAlignment gold = gold_of(i);
    for (int64_t t = 0; t < kSources; ++t) {
      back += gold.target_of_token[kSources + t] == t;
    }
  }
  const RoleTable table = table_of(*role, 3, kMeasure);
  const RoleScore& found = *table.find(0, 0, "gold_alignment");
  EXPECT_DOUBLE_EQ(found.score, 1);
  EXPECT_TRUE(found.assigned) << found.reason;
  EXPECT_EQ(found.rows, kSequences * kSources);
  // 0.4 of planted rows, of which the candidates hold all but the six others' share of 0.1.
  EXPECT_NEAR(found.excluded_mass, 1 - 0.4 * (0.9 + 0.1 * 5 / 11), 1e-6);
  EXPECT_NEAR(null_of(found, "uniform"), 1.0 / kSources, 1e-12);
  EXPECT_NEAR(null_of(found, "shuffle"), 1.0 / kSources, 0.05);
  EXPECT_GT(null_of(found, "best_of_n"), null_of(found, "shuffle"));

  const RoleScore& fixed = *table.find(0, 1, "gold_alignment");
  EXPECT_DOUBLE_EQ(fixed.score, back / double(kSequences * kSources));
  EXPECT_FALSE(fixed.assigned);
  const RoleScore& even = *table.find(0, 2, "gold_alignment");
  EXPECT_NEAR(even.score, 1.0 / kSources, 1e-6);
  EXPECT_FALSE(even.assigned);
}

TEST(GoldAlignmentTest, APartnerOutOfSightIsMissedAndAnEmptyRowDropped) {
  const GoldAlignment gold{{2, 0, -1}, {}};
  const auto role = gold_alignment_role(layout_of(1), {gold, gold}, kMeasure);
  const at::Tensor causal = at::ones({3, 3}, at::kBool).tril();
  role->add(GivenRows(0, 0, at::eye(3).unsqueeze(0), causal).rows());  // 0 cannot see 2
  const auto only_first = gold_alignment_role(layout_of(1), {{{1, 0, -1}, {0, 1}}}, kMeasure);
  at::Tensor last = at::zeros({1, 3, 3});
  last.select(2, 2).fill_(1);
  last[0][1] = at::tensor({1.0F, 0.0F, 0.0F});
  only_first->add(GivenRows(0, 0, last).rows());
  const RoleScore missed = *table_of(*role, 1).find(0, 0, "gold_alignment");
  EXPECT_EQ(missed.rows, 2);
  EXPECT_DOUBLE_EQ(missed.score, 0);
  EXPECT_DOUBLE_EQ(null_of(missed, "uniform"), (0 + 0.5) / 2);
  const RoleScore dropped = *table_of(*only_first, 1).find(0, 0, "gold_alignment");
  EXPECT_EQ(dropped.rows, 1);
  EXPECT_EQ(dropped.dropped_rows, 1);
  EXPECT_DOUBLE_EQ(dropped.score, 1);
}

TEST(GoldAlignmentTest, ReadsCrossAttentionOnRequest) {
  const GoldAlignment gold{{3, 0}, {}};
  const at::Tensor rows = pointing_at({3, 0}, 5, 0.8).unsqueeze(0);
  const auto role = gold_alignment_role(layout_of(1), {gold}, kMeasure, /*cross=*/true);
  role->add(GivenRows(0, 0, at::ones({1, 2, 2}) / 2).rows());
  role->add(GivenRows(0, 0, rows).cross().rows());
  const RoleScore found = *table_of(*role, 1).find(0, 0, "gold_alignment");
  EXPECT_EQ(found.rows, 2);
  EXPECT_DOUBLE_EQ(found.score, 1);
}

TEST(GoldAlignmentTest, MergingIsExact) {
  testing::expect_merging_is_exact(
      [] { return gold_alignment_role(layout_of(3), all_gold(), kMeasure); },
      [](RoleAccumulator& role, int64_t i) { role.add(GivenRows(i, 0, planted(i)).rows()); },
      kSequences, 3);
}

TEST(GoldAlignmentTest, RefusesPlacesThatAreNotThere) {
  EXPECT_THROW(gold_alignment_role(layout_of(1), {{{-2}, {}}}), std::invalid_argument);
  EXPECT_THROW(gold_alignment_role(layout_of(1), {{{0}, {-1}}}), std::invalid_argument);
  const GivenRows two(0, 0, at::ones({1, 2, 2}) / 2);
  for (const GoldAlignment& gold :
       {GoldAlignment{{0, 0, 0}, {}}, GoldAlignment{{2}, {}}, GoldAlignment{{0}, {2}}}) {
    EXPECT_THROW(gold_alignment_role(layout_of(1), {gold})->add(two.rows()), std::invalid_argument);
  }
  EXPECT_THROW(gold_alignment_role(layout_of(1), {})->add(two.rows()), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
