#include "headkit/gates/latency_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/scratch_folder.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 4, 2, 5, 64};

class LatencyModelTest : public ::testing::Test {
 protected:
  LatencyModel measured(const LatencyModelOptions& options = {}) {
    return LatencyModel::measure(*model_, batch_, options);
  }
  // A model with numbers that were made up, to check what is computed from them.
  LatencyModel given() {
    const nlohmann::json json{
        {"version", 1},
        {"key", "key"},
        {"layout", {{"layers", 3}, {"heads", 4}, {"feed_forward", 64}}},
        {"tokens", {10.0, 20.0}},
        {"batches", {1.0, 3.0}},
        {"measured", 4},
        {"milliseconds",
         {{{"heads", {1.0, 2.0, 3.0, 4.0, 5.0}}, {"blocks", {2.0, 3.0, 5.0}}, {"other", 7.0}},
          {{"heads", {3.0, 6.0, 9.0, 12.0, 15.0}}, {"blocks", {6.0, 9.0, 15.0}}, {"other", 9.0}},
          {{"heads", {2.0, 4.0, 6.0, 8.0, 10.0}}, {"blocks", {4.0, 6.0, 10.0}}, {"other", 8.0}},
          {{"heads", {6.0, 12.0, 18.0, 24.0, 30.0}},
           {"blocks", {12.0, 18.0, 30.0}},
           {"other", 20.0}}}}};
    return LatencyModel::from_json(json.dump(), "key");
  }
  std::shared_ptr<testing::ToyModel> model_ = testing::random_toy_model(kLayout, 3, 7);
  Batch batch_ = testing::random_toy_batch(kLayout, 4, 6, 3, 8);
};

TEST_F(LatencyModelTest, InterpolatesBetweenWhatWasMeasured) {
  const LatencyModel model = given();
  // 3 layers x (5 of all heads + 5 - 5 of all blocks) + 7.
  EXPECT_DOUBLE_EQ(model.milliseconds(12, 6, 10, 1), 3 * 5.0 + 7);
  EXPECT_DOUBLE_EQ(model.milliseconds(6, 6, 10, 1), 3 * 3.0 + 7);
  EXPECT_DOUBLE_EQ(model.milliseconds(7.5, 6, 10, 1), 3 * 3.5 + 7);
  EXPECT_DOUBLE_EQ(model.milliseconds(12, 3, 10, 1), 3 * 3.0 + 7);
  EXPECT_DOUBLE_EQ(model.milliseconds(12, 6, 15, 1), 3 * 7.5 + 7.5);
  EXPECT_DOUBLE_EQ(model.milliseconds(12, 6, 10, 2), 3 * 10.0 + 8);
  EXPECT_DOUBLE_EQ(model.milliseconds(12, 6, 40, 3), 2 * (3 * 30.0 + 20));
  EXPECT_DOUBLE_EQ(model.milliseconds(12, 6, 5, 1), model.milliseconds(12, 6, 10, 1));
  EXPECT_THROW(model.milliseconds(-1, 0, 10, 1), std::invalid_argument);
  EXPECT_THROW(model.milliseconds(1, 0, 0, 1), std::invalid_argument);
}

TEST_F(LatencyModelTest, GivesTablesThatAddUpToItself) {
  const LatencyModel model = given();
  const LatencyTables tables = model.tables(10, 1);
  ASSERT_EQ(tables.heads.size(), 4u);
  ASSERT_EQ(tables.neurons.size(), 2u);
  EXPECT_NEAR(tables.heads[1], 2e-3, 1e-15);
  const double all = tables.other + 3 * (tables.heads.back() + tables.neurons.back());
  EXPECT_NEAR(all * 1e3, model.milliseconds(12, 6, 10, 1), 1e-12);
  const double half = tables.other + 3 * (tables.heads[1] + tables.neurons.back());
  EXPECT_NEAR(half * 1e3, model.milliseconds(6, 6, 10, 1), 1e-12);
}

TEST_F(LatencyModelTest, NeverFallsWithWhatRuns) {
  const LatencyModel model = measured({.tokens = {4, 12}, .batches = {1, 2}, .repeats = 1});
  EXPECT_GE(model.measured_sizes(), 1);
  double before = 0;
  for (double heads = 0; heads <= 12; heads += 1.5) {
    const double now = model.milliseconds(heads, 6, 8, 2);
    EXPECT_GE(now, before);
    before = now;
  }
  for (const auto& [tokens, batch] :
       {std::pair<int64_t, int64_t>{2, 1}, {4, 1}, {9, 1}, {12, 2}, {30, 2}, {30, 9}}) {
    const double now = model.milliseconds(6, 3, tokens, batch);
    EXPECT_GT(now, 0);
    EXPECT_GE(model.milliseconds(6, 3, tokens * 2, batch), now);
  }
}

TEST_F(LatencyModelTest, ScalesWhatTheTimeDoesNotAllowToMeasure) {
  const LatencyModel model =
      measured({.tokens = {2, 4, 8}, .batches = {1, 2}, .repeats = 1, .seconds = 1e-9});
  EXPECT_EQ(model.measured_sizes(), 1);
  EXPECT_NEAR(model.milliseconds(12, 6, 8, 2), 8 * model.milliseconds(12, 6, 2, 1), 1e-9);
}

TEST_F(LatencyModelTest, IsStoredWithWhatItHoldsFor) {
  const testing::ScratchFolder folder;
  const LatencyModel model = measured({.tokens = {4}, .batches = {1}, .repeats = 1});
  const std::string key = LatencyModel::key_of(*model_, batch_);
  EXPECT_EQ(model.key(), key);
  model.save(folder / "latency.json");
  const LatencyModel again = LatencyModel::load(folder / "latency.json", key);
  EXPECT_EQ(again.to_json(), model.to_json());
  EXPECT_EQ(again.milliseconds(5, 3, 7, 2), model.milliseconds(5, 3, 7, 2));
  const auto other = testing::random_toy_model({2, 4, 2, 5, 64}, 3, 7);
  EXPECT_THROW(LatencyModel::load(folder / "latency.json", LatencyModel::key_of(*other, batch_)),
               std::invalid_argument);
  EXPECT_THROW(LatencyModel::load(folder / "missing.json", key), std::runtime_error);
  EXPECT_THROW(LatencyModel::from_json("{}", key), std::invalid_argument);
  EXPECT_THROW(measured({.tokens = {8, 4}}), std::invalid_argument);
  EXPECT_THROW(measured({.repeats = 0}), std::invalid_argument);
  EXPECT_THROW(LatencyModel::measure(*model_, testing::random_toy_batch(kLayout, 0, 6, 3, 8)),
               std::invalid_argument);
}

}  // namespace
}  // namespace headkit
