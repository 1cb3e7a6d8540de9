#include "headkit/explain/role_score.h"

#include <gtest/gtest.h>

#include <set>

namespace headkit {
namespace {

RoleScore good_score() {
  RoleScore score;
  score.role = "previous_token";
  score.score = 0.9;
  score.lower = 0.85;
  score.upper = 0.95;
  score.nulls = {{"uniform", 0.1}, {"best_of_n", 0.2}};
  score.sequences = 60;
  score.rows = 2000;
  return score;
}

TEST(RoleRegistryTest, EveryRoleIsWhole) {
  std::set<std::string> names;
  for (const RoleInfo& info : role_registry()) {
    EXPECT_TRUE(names.insert(info.role).second) << info.role;
    EXPECT_FALSE(info.formula.empty()) << info.role;
    EXPECT_FALSE(info.definition.empty()) << info.role;
    EXPECT_TRUE(info.convention == "raw" || info.convention == "renormalised" ||
                info.convention == "weights")
        << info.role;
    EXPECT_TRUE(!info.threshold || !info.threshold_source.empty()) << info.role;
  }
  EXPECT_THROW(role_info("no_such_role"), std::invalid_argument);
}

TEST(RoleScoreTest, ALabelNeedsThresholdNullSampleAndRows) {
  RoleScore score = good_score();
  judge(score);
  EXPECT_TRUE(score.assigned);
  EXPECT_EQ(score.formula, role_info("previous_token").formula);
  EXPECT_DOUBLE_EQ(*score.margin(), 0.7);

  RoleScore low = good_score();
  low.score = 0.4;
  judge(low);
  EXPECT_TRUE(low.assessed);
  EXPECT_FALSE(low.assigned);

  RoleScore near_null = good_score();
  near_null.nulls.push_back({"shuffle", 0.86});
  judge(near_null);
  EXPECT_FALSE(near_null.assigned);

  RoleScore unknown_interval = good_score();
  unknown_interval.lower = unknown_interval.upper = std::nullopt;
  judge(unknown_interval);
  EXPECT_FALSE(unknown_interval.assigned);

  RoleScore few = good_score();
  few.sequences = 49;
  judge(few);
  EXPECT_FALSE(few.assigned);
  few.sequences = 50;
  few.rows = 999;
  judge(few);
  EXPECT_FALSE(few.assigned);
}

TEST(RoleScoreTest, MoreThanHalfDroppedIsNotAssessed) {
  RoleScore score = good_score();
  score.dropped_rows = 2000;
  judge(score);
  EXPECT_TRUE(score.assessed);
  score.dropped_rows = 2001;
  judge(score);
  EXPECT_FALSE(score.assessed);
  EXPECT_FALSE(score.margin().has_value());
}

TEST(RoleScoreTest, AMarginIsNeededWhereTheRegistryAsksForOne) {
  RoleScore score = good_score();
  score.role = "duplicate_token";
  score.nulls = {{"uniform", 0.75}};
  judge(score);
  EXPECT_FALSE(score.assigned);
  score.nulls = {{"uniform", 0.65}};
  judge(score);
  EXPECT_TRUE(score.assigned);
}

TEST(RoleScoreTest, ALowRoleIsMirrored) {
  RoleScore score = good_score();
  score.role = "inactive";
  score.nulls.clear();
  score.threshold = 0.2;
  score.sequences = 100;
  score.score = 0.1;
  judge(score);
  EXPECT_TRUE(score.assigned);
  EXPECT_DOUBLE_EQ(*score.margin(), 0.1);
  score.score = 0.3;
  judge(score);
  EXPECT_FALSE(score.assigned);

  RoleScore local = good_score();
  local.role = "local";
  local.score = 0.05;
  local.nulls = {{"uniform", 0.33}};
  judge(local);
  EXPECT_DOUBLE_EQ(*local.margin(), 0.28);
  EXPECT_FALSE(local.assigned) << "no threshold is known";
}

TEST(RoleScoreTest, BroadNeedNotBeatUniform) {
  RoleScore score = good_score();
  score.role = "broad";
  score.nulls = {{"uniform", 1.0}};
  judge(score);
  EXPECT_TRUE(score.assigned);
}

TEST(RoleTableTest, RanksByMarginAndSurvivesJson) {
  RoleTable table;
  table.layout = {.layers = 1, .heads = 2, .head_dim = 4, .model_dim = 8};
  table.sequences = 60;
  table.warnings = role_warnings();
  RoleScore strong = good_score();
  judge(strong);
  RoleScore weak = good_score();
  weak.role = "next_token";
  weak.score = 0.3;
  weak.agrees = false;
  weak.details = {{"offset", -1}};
  judge(weak);
  RoleScore missing;
  missing.role = "delimiter";
  missing.variant = "sep";
  missing.reason = "no delimiters are known";
  judge(missing);
  for (const RoleScore& each : {missing, weak, strong}) table.add(0, 1, each);
  table.rank();
  EXPECT_EQ(table.heads[0][1][0].role, "previous_token");
  EXPECT_EQ(table.heads[0][1][2].role, "delimiter");
  EXPECT_EQ(table.heads[0][1][2].reason, "no delimiters are known");
  EXPECT_EQ(table.labels(0, 1).size(), 1u);
  EXPECT_TRUE(table.labels(0, 0).empty());
  EXPECT_NE(table.find(0, 1, "delimiter", "sep"), nullptr);
  EXPECT_EQ(table.find(0, 1, "delimiter"), nullptr);
  const RoleTable read = RoleTable::from_json(table.to_json());
  EXPECT_EQ(read.heads, table.heads);
  EXPECT_EQ(read.to_json(), table.to_json());
  EXPECT_THROW(table.add(1, 0, strong), std::out_of_range);
  EXPECT_THROW(RoleTable::from_json("{}"), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
