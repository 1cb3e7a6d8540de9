#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "headkit/pruners/pruner.h"
#include "headkit/pruners/removal.h"
#include "support/planted_labels.h"

namespace headkit {
namespace {

using testing::planted_heads;
using testing::PlantedHeads;

constexpr double kNeededShare = 3.0 / 8;

struct Asked {
  double keep = 0.5;
  bool per_layer = false;
  bool compensate = false;
  std::string settings = "{}";
};

StaticPruning prune_planted(const PlantedHeads& planted, const std::string& method,
                            const Asked& asked) {
  PruneOptions options;
  options.share.keep = asked.keep;
  options.share.per_layer = asked.per_layer;
  options.compensate = asked.compensate;
  options.settings = asked.settings;
  return prune(*planted.model, BatchList(planted.batches), *cross_entropy(), method, options);
}

class LearnedPrunerTest : public ::testing::TestWithParam<const char*> {};

TEST_P(LearnedPrunerTest, FindsThePlantedHeads) {
  const PlantedHeads planted = planted_heads(4);
  const StaticPruning found = prune_planted(planted, GetParam(), {.keep = kNeededShare});
  EXPECT_EQ(found.heads, planted.needed);
  EXPECT_TRUE(found.heads_only());
  const auto details = nlohmann::json::parse(found.details);
  EXPECT_EQ(details["method"], GetParam());
  EXPECT_LT(details["hardening"]["hard_loss"].get<double>(),
            details["hardening"]["dense_loss"].get<double>());
}

TEST_P(LearnedPrunerTest, KeepsExactlyAsManyHeadsAsAsked) {
  const PlantedHeads planted = planted_heads(5);
  for (int64_t keep : {0, 1, 5, 8}) {
    const StaticPruning found =
        prune_planted(planted, GetParam(),
                      {.keep = static_cast<double>(keep) / 8, .settings = R"({"steps": 3})"});
    EXPECT_EQ(found.heads.count(), keep);
  }
  const StaticPruning even =
      prune_planted(planted, GetParam(), {.per_layer = true, .settings = R"({"steps": 3})"});
  EXPECT_EQ(even.heads.layer_heads(0).size(), 2u);
  EXPECT_EQ(even.heads.layer_heads(1).size(), 2u);
}

TEST_P(LearnedPrunerTest, NeverKeepsHeadsThatTheModelLost) {
  const PlantedHeads planted = planted_heads(5);
  at::Tensor there = at::ones({2, 4}, at::kBool);
  there[0][1] = false;
  there[1][2] = false;
  remove_heads(*planted.model, HeadMask(there));
  const StaticPruning found =
      prune_planted(planted, GetParam(), {.keep = 0.5, .settings = R"({"steps": 12})"});
  EXPECT_EQ(found.heads.count(), 4);
  EXPECT_TRUE(found.heads.is_subset_of(HeadMask(there)));
}

TEST_P(LearnedPrunerTest, RefusesSettingsThatItDoesNotKnow) {
  const PlantedHeads planted = planted_heads(5);
  for (const char* settings : {R"({"steps": 0})", R"({"stepps": 3})", R"({"learning_rate": 0})"}) {
    EXPECT_THROW(prune_planted(planted, GetParam(), {.settings = settings}), std::invalid_argument)
        << settings;
  }
  EXPECT_THROW(prune_planted(planted, GetParam(), {.keep = 1.5}), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Methods, LearnedPrunerTest,
                         ::testing::Values("voita", "subset", "fixed_target"),
                         [](const auto& each) { return std::string(each.param); });

TEST(VoitaTest, SearchesThePenaltyThatLeavesTheBudget) {
  const PlantedHeads planted = planted_heads(4);
  const StaticPruning found =
      prune_planted(planted, "voita",
                    {.keep = kNeededShare, .settings = R"({"first_penalty": 5, "steps": 200})"});
  const auto details = nlohmann::json::parse(found.details);
  EXPECT_GT(details["rounds"].size(), 1u);
  EXPECT_EQ(details["rounds"][0]["open"], 0);
  EXPECT_EQ(details["open"], 3);
  EXPECT_LT(details["penalty"].get<double>(), 5);
}

TEST(CofiTest, ReachesAShareOfWeightsOrSaysThatItCannot) {
  const PlantedHeads planted = planted_heads(4);
  const StaticPruning found =
      prune_planted(planted, "cofi",
                    {.keep = kNeededShare,
                     .settings = R"({"steps": 400, "learning_rate": 0.1, "sublayers": false})"});
  EXPECT_FALSE(found.heads_only());
  // A Lagrangian swings around its target; hard gates are whole heads of four a layer.
  const auto report = nlohmann::json::parse(found.details)["hardening"]["gates"];
  EXPECT_NEAR(report["expected_sparsity"].get<double>(), 1 - kNeededShare, 0.1);
  EXPECT_NEAR(report["hard_sparsity"].get<double>(), 1 - kNeededShare, 0.13);
  EXPECT_GT(found.heads.count(), 0);
  EXPECT_TRUE(found.heads.is_subset_of(planted.needed));

  const Batch& batch = planted.batches[0];
  GateSet soft = found.all_gates();
  const at::Tensor expected = (*planted.model)(batch, soft);
  apply_pruning(*planted.model, found);
  EXPECT_TRUE(at::allclose((*planted.model)(batch), expected, 1e-9, 1e-9));
  EXPECT_THROW(prune_planted(planted, "cofi", {}), std::invalid_argument);  // lost heads
  const PlantedHeads fresh = planted_heads(4);
  EXPECT_THROW(prune_planted(fresh, "cofi", {.keep = 0}), std::invalid_argument);
  EXPECT_THROW(prune_planted(fresh, "cofi", {.compensate = true}), std::invalid_argument);
  EXPECT_THROW(prune_planted(fresh, "cofi", {.settings = R"({"hidden": true})"}),
               std::invalid_argument);
}

TEST(CofiTest, DistilsFromTheDenseModel) {
  const PlantedHeads planted = planted_heads(4);
  const StaticPruning found =
      prune_planted(planted, "cofi", {.keep = 0.5, .settings = R"({"steps": 20, "distil": true})"});
  EXPECT_TRUE(nlohmann::json::parse(found.details)["distil"].get<bool>());
  EXPECT_THROW(
      prune_planted(planted, "cofi",
                    {.keep = 0.5,
                     .settings = R"({"steps": 2, "distil": true, "weight_learning_rate": 0.1})"}),
      std::invalid_argument);
}

}  // namespace
}  // namespace headkit
