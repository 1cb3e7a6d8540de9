#include "headkit/explain/audio_roles.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "given_rows.h"

namespace headkit {
namespace {

using testing::detail_of;
using testing::GivenRows;
using testing::layout_of;
using testing::null_of;
using testing::pointing_at;
using testing::table_of;

constexpr int64_t kFrames = 20;
constexpr double kHop = 0.02, kWeight = 0.99;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
const RoleMeasure kMeasure{.draws = 40, .bootstrap = 100};

std::vector<int64_t> frames(const std::function<int64_t(int64_t)>& key) {
  std::vector<int64_t> keys(kFrames);
  for (int64_t i = 0; i < kFrames; ++i) keys[i] = key(i);
  return keys;
}

// Head 0 on the diagonal, 1 on frame 3, 2 against time, 3 everywhere.
at::Tensor planted() {
  return at::stack(
      {pointing_at(frames([](int64_t i) { return i; }), kFrames, kWeight),
       pointing_at(frames([](int64_t) { return 3; }), kFrames, kWeight),
       pointing_at(frames([](int64_t i) { return kFrames - 1 - i; }), kFrames, kWeight),
       pointing_at(frames([](int64_t) { return -1; }), kFrames, kWeight)});
}

RoleTable planted_table() {
  const auto roles = audio_roles(layout_of(4), kHop);
  for (int64_t i = 0; i < 3; ++i) roles->add(GivenRows(i, 0, planted()).rows());
  return table_of(*roles, 4, kMeasure);
}

double score_of(const RoleTable& table, int64_t head, const char* role) {
  return table.find(0, head, role)->score;
}

// Mean over frames of the distance to all others, each divided by `by(i)`.
double mean_distance(const std::function<double(int64_t)>& by) {
  double sum = 0;
  for (int64_t i = 0; i < kFrames; ++i) {
    for (int64_t j = 0; j < kFrames; ++j) sum += std::abs(i - j) / by(i) / kFrames;
  }
  return sum;
}

TEST(AudioRolesTest, DiagonalInClosedForm) {
  const RoleTable table = planted_table();
  const double rest = (1 - kWeight) / (kFrames - 1);
  const auto farthest = [](int64_t i) { return double(std::max(i, kFrames - 1 - i)); };
  const auto length = [](int64_t) { return double(kFrames); };
  EXPECT_NEAR(score_of(table, 0, "diag_distance"), 1 - rest * mean_distance(farthest), 1e-6);
  EXPECT_NEAR(score_of(table, 0, "diag_cumulative"), 1 - rest * mean_distance(length), 1e-6);
  EXPECT_NEAR(detail_of(*table.find(0, 0, "diag_cumulative"), "mean_distance_seconds"),
              kHop * rest * mean_distance([](int64_t) { return 1.0; }), 1e-6);
  for (const char* role : {"diag_distance", "diag_cumulative"}) {
    const RoleScore& even = *table.find(0, 3, role);
    EXPECT_NEAR(even.score, null_of(even, "uniform"), 1e-6);
    for (const int64_t other : {1, 2, 3}) {
      EXPECT_GT(score_of(table, 0, role), score_of(table, other, role) + 0.2);
    }
  }
  EXPECT_NEAR(null_of(*table.find(0, 0, "diag_distance"), "uniform"),
              1 - mean_distance(farthest) / kFrames, 1e-9);
}

TEST(AudioRolesTest, TheCumulativeDiagonalIsTheMeanOverWidths) {
  const at::Tensor random = at::softmax(at::randn({1, kFrames, kFrames}, at::kDouble) * 3, -1);
  const auto roles = audio_roles(layout_of(1), kHop);
  roles->add(GivenRows(0, 0, random).rows());
  const at::Tensor place = at::arange(kFrames);
  const at::Tensor distance = (place.unsqueeze(1) - place).abs();
  double sum = 0;
  for (int64_t w = 0; w < kFrames; ++w) {  // r T in [w, w + 1)
    sum += random[0].masked_select(distance.le(w)).sum().item<double>() / kFrames / kFrames;
  }
  // The steps count the distance w from width w on: r T >= w.
  EXPECT_NEAR(score_of(table_of(*roles, 1), 0, "diag_cumulative"), sum, 1e-6);
}

TEST(AudioRolesTest, VerticalAndGlobalInClosedForm) {
  const RoleTable table = planted_table();
  const double rest = (1 - kWeight) / (kFrames - 1);
  const double entropy = -kWeight * std::log(kWeight) - (kFrames - 1) * rest * std::log(rest);
  EXPECT_NEAR(score_of(table, 1, "verticality"), 1 - entropy / std::log(kFrames), 1e-6);
  EXPECT_NEAR(score_of(table, 0, "globalness"), entropy / std::log(kFrames), 1e-5);
  for (const int64_t head : {0, 2, 3}) EXPECT_NEAR(score_of(table, head, "verticality"), 0, 1e-6);
  EXPECT_NEAR(score_of(table, 3, "globalness"), 1, 1e-6);
  EXPECT_NEAR(null_of(*table.find(0, 0, "verticality"), "uniform"), 0, 1e-12);
}

TEST(AudioRolesTest, MonotonicityCountsStepsThatDoNotGoBack) {
  const RoleTable table = planted_table();
  EXPECT_DOUBLE_EQ(score_of(table, 0, "monotonicity"), 1);
  EXPECT_DOUBLE_EQ(score_of(table, 1, "monotonicity"), 1);
  EXPECT_DOUBLE_EQ(score_of(table, 2, "monotonicity"), 0);
  EXPECT_NEAR(score_of(table, 3, "monotonicity"), (kFrames + 1) / (2.0 * kFrames), 1e-12);
  EXPECT_NEAR(null_of(*table.find(0, 0, "monotonicity"), "uniform"),
              (kFrames + 1) / (2.0 * kFrames), 1e-12);
  for (int64_t head = 0; head < 4; ++head) {
    EXPECT_FALSE(table.find(0, head, "monotonicity")->assigned);
  }
}

TEST(AudioRolesTest, OneFrameIsNotAssessed) {
  const auto roles = audio_roles(layout_of(1), kHop);
  roles->add(GivenRows(0, 0, at::ones({1, 1, 1})).rows());
  const RoleTable table = table_of(*roles, 1);
  for (const char* role : {"globalness", "verticality", "diag_distance", "monotonicity"}) {
    EXPECT_FALSE(table.find(0, 0, role)->assessed) << role;
  }
  EXPECT_THROW(audio_roles(layout_of(1), 0), std::invalid_argument);
  EXPECT_THROW(audio_roles(layout_of(1), kNaN), std::invalid_argument);
}

TEST(AudioRolesTest, MergingIsExact) {
  testing::expect_merging_is_exact([] { return audio_roles(layout_of(4), kHop); },
                                   [](RoleAccumulator& roles, int64_t i) {
                                     at::manual_seed(i);
                                     const at::Tensor rows =
                                         at::softmax(at::randn({4, kFrames, kFrames}), -1);
                                     roles.add(GivenRows(i, 0, rows).rows());
                                   },
                                   8, 4);
}

// Words at every second decoder token, at frames 1, 3, 5 ...; head 0 looks there, head 1 at frame
// 4, head 2 backwards.
constexpr int64_t kTokens = 10;
std::vector<double> word_times() {
  std::vector<double> times(kTokens, kNaN);
  for (int64_t i = 0; i < kTokens; i += 2) times[i] = kHop * static_cast<double>(i + 1);
  return times;
}
at::Tensor spoken() {
  std::vector<int64_t> there(kTokens), still(kTokens, 4), back(kTokens);
  for (int64_t i = 0; i < kTokens; ++i) {
    there[i] = i + 1;
    back[i] = kFrames - 1 - i;
  }
  return at::stack({pointing_at(there, kFrames, kWeight), pointing_at(still, kFrames, kWeight),
                    pointing_at(back, kFrames, kWeight)});
}

TEST(TimeAlignmentTest, FindsThePlantedDiagonal) {
  constexpr int64_t kUtterances = 70;
  const auto role = time_alignment_role(
      layout_of(3), kHop, std::vector<std::vector<double>>(kUtterances, word_times()), kMeasure);
  for (int64_t i = 0; i < kUtterances; ++i) {
    role->add(GivenRows(i, 0, at::ones({3, kTokens, kTokens}) / kTokens).rows());  // not cross
    role->add(GivenRows(i, 0, spoken()).cross().rows());
  }
  const RoleTable table = table_of(*role, 3, kMeasure);
  const RoleScore& found = *table.find(0, 0, "time_alignment");
  EXPECT_NEAR(found.score, 1, 1e-6);
  EXPECT_EQ(found.rows, kUtterances * kTokens / 2);
  // The mean time is the frame's, pulled to that of all others.
  const double rest = (1 - kWeight) / (kFrames - 1);
  const double all = kFrames * (kFrames - 1) / 2.0;
  const double third = 5;  // the median word
  EXPECT_NEAR(detail_of(found, "median_error_seconds"),
              kHop * std::abs(rest * (all - third) + (kWeight - 1) * third), 1e-5);
  EXPECT_DOUBLE_EQ(table.find(0, 1, "time_alignment")->score, 0);
  EXPECT_NEAR(table.find(0, 2, "time_alignment")->score, -1, 1e-6);
  EXPECT_NEAR(null_of(found, "shuffle"), 0, 0.1);
  EXPECT_LT(null_of(found, "best_of_n"), 0.5);
}

TEST(TimeAlignmentTest, NeedsThreeWordsAndTimesThatFit) {
  std::vector<double> two(kTokens, kNaN);
  two[0] = 0.1;
  two[4] = 0.2;
  const auto role = time_alignment_role(layout_of(3), kHop, {two}, kMeasure);
  role->add(GivenRows(0, 0, spoken()).cross().rows());
  EXPECT_FALSE(table_of(*role, 3).find(0, 0, "time_alignment")->assessed);
  EXPECT_THROW(role->add(GivenRows(1, 0, spoken()).cross().rows()), std::invalid_argument);
  EXPECT_THROW(time_alignment_role(layout_of(3), kHop, {{0.1}}, kMeasure)
                   ->add(GivenRows(0, 0, spoken()).cross().rows()),
               std::invalid_argument);
  EXPECT_THROW(time_alignment_role(layout_of(3), kHop, {{INFINITY}}), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
