#include "headkit/explain/offset_baseline.h"

#include <gtest/gtest.h>

#include <cmath>

namespace headkit {
namespace {

SequenceSyntax arcs(std::vector<int64_t> heads, std::vector<std::string> relations) {
  return {.word_of_token = {}, .head_of_word = std::move(heads), .relation = std::move(relations)};
}

const OffsetBaseline* find(const std::vector<OffsetBaseline>& all, const std::string& relation) {
  for (const OffsetBaseline& each : all) {
    if (each.relation == relation) return &each;
  }
  return nullptr;
}

TEST(OffsetBaselineTest, CountsByHand) {
  // det at +1, +1, +2; nsubj at +1 and, as nsubj:pass, at -2.
  const std::vector<SequenceSyntax> sequences{
      arcs({1, 2, -1, 1}, {"det", "nsubj", "root", "nsubj:pass"}),
      arcs({1, -1, 4, 4, -1}, {"det", "root", "det", "x", "root"})};
  const auto found = offset_baselines(sequences, sequences);
  EXPECT_EQ(found.front().relation, "det");
  EXPECT_EQ(found.front().arcs, 3);
  EXPECT_EQ(found.front().offset, 1);
  EXPECT_DOUBLE_EQ(found.front().accuracy, 2.0 / 3);
  EXPECT_EQ(find(found, "nsubj")->arcs, 2);
  EXPECT_EQ(find(found, "nsubj")->offset, 1);
  EXPECT_DOUBLE_EQ(find(found, "nsubj")->accuracy, 0.5);
  EXPECT_EQ(find(found, "nsubj:pass")->offset, -2);
  EXPECT_EQ(find(found, "root"), nullptr);
}

TEST(OffsetBaselineTest, IsChosenOnOnePartAndScoredOnTheOther) {
  const std::vector<SequenceSyntax> here{arcs({1, -1}, {"a", "root"})};
  const std::vector<SequenceSyntax> there{arcs({-1, 0, 1, 2}, {"root", "a", "a", "b"})};
  const auto found = offset_baselines(here, there);
  EXPECT_EQ(find(found, "a")->offset, 1);
  EXPECT_EQ(find(found, "a")->accuracy, 0);
  EXPECT_EQ(find(found, "a")->arcs, 2);
  EXPECT_TRUE(std::isnan(find(offset_baselines(there, here), "b")->accuracy));
}

TEST(OffsetBaselineTest, LongArcsFitNoOffset) {
  std::vector<int64_t> heads(12, -1);
  heads[0] = 9;
  const std::vector<SequenceSyntax> sequences{
      arcs(heads, std::vector<std::string>(heads.size(), "far"))};
  EXPECT_EQ(offset_baselines(sequences, sequences).front().accuracy, 0);
}

}  // namespace
}  // namespace headkit
