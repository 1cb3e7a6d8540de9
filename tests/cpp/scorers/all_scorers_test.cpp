#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "headkit/models/data_hash.h"
#include "headkit/pruners/removal.h"
#include "headkit/scorers/head_scorer.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 2, .heads = 3, .head_dim = 2, .model_dim = 5};

struct Case {
  const char* metric;
  const char* settings = "{}";
};

std::vector<Case> cases() {
  return {{"gate_gradient"},
          {"fisher"},
          {"ablation"},
          {"ablation", R"({"replacement": "mean"})"},
          {"all_but_one"},
          {"shapley"},
          {"shapley", R"({"exact": false, "permutations": 4})"},
          {"shapley", R"({"exact": false, "permutations": 4, "tolerance": 0.05})"},
          {"kl_curvature"},
          {"kl_curvature", R"({"draws": 3})"},
          {"activation"},
          {"activation", R"({"statistic": "norm"})"},
          {"flap"},
          {"attention_entropy", R"({"sign": "high"})"},
          {"attention_entropy", R"({"first_token": "calibrated"})"},
          {"confidence"},
          {"weight_norm", R"({"kind": "qk"})"},
          {"greedy_gnorm"},
          {"greedy_gnorm", R"({"recompute": false})"},
          {"hies"},
          {"random"}};
}

class EveryScorer : public ::testing::TestWithParam<Case> {
 protected:
  HeadScores score(GatedModel& model, const std::vector<Batch>& batches) const {
    ScoreOptions options;
    options.bootstrap = 50;
    return make_scorer(GetParam().metric, GetParam().settings)
        ->score(model, BatchList(batches), *cross_entropy(), options);
  }
  bool reads_data() const {
    const std::string metric = GetParam().metric;
    return metric != "random" && metric != "weight_norm";
  }
};

std::vector<Batch> split(const Batch& batch, const std::vector<int64_t>& sizes) {
  std::vector<Batch> pieces;
  int64_t first = 0;
  for (int64_t size : sizes) {
    pieces.push_back(select_examples(batch, at::arange(first, first + size)));
    first += size;
  }
  return pieces;
}

TEST_P(EveryScorer, BatchSizeAndPaddingDoNotShow) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch all = testing::random_toy_batch(kLayout, 8, 6, 3, 2);
  const HeadScores expected = score(*model, {all});
  Batch padded = all;
  padded["x"] = at::constant_pad_nd(all.at("x"), {0, 0, 0, 5}, 2.5);
  padded["attention_mask"] = at::constant_pad_nd(all.at("attention_mask"), {0, 5}, false);
  for (const auto& data :
       {split(all, std::vector<int64_t>(8, 1)), split(all, {7, 1}), std::vector<Batch>{padded}}) {
    const HeadScores found = score(*model, data);
    EXPECT_TRUE(at::allclose(found.values, expected.values, 1e-9, 1e-11));
    EXPECT_EQ(found.samples, expected.samples);
    EXPECT_EQ(found.lower.defined(), expected.lower.defined());
    if (found.lower.defined()) {
      EXPECT_TRUE(at::allclose(found.lower, expected.lower, 1e-9, 1e-11));
      EXPECT_TRUE(at::allclose(found.upper, expected.upper, 1e-9, 1e-11));
    }
  }
}

TEST_P(EveryScorer, TellsWhichDataItSaw) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch all = testing::random_toy_batch(kLayout, 8, 6, 3, 2);
  const auto hash = [&](const std::vector<Batch>& batches) {
    return nlohmann::json::parse(score(*model, batches).settings).value("data_hash", "");
  };
  const std::string found = hash(split(all, {3, 5}));
  EXPECT_EQ(found, reads_data() ? data_hash(BatchList({all})) : "");
  Batch other = all;
  other["labels"] = (all.at("labels") + 1).remainder(3);
  if (reads_data()) {
    EXPECT_NE(hash({other}), found);
  }
}

TEST_P(EveryScorer, PermutingHeadsPermutesScores) {
  if (std::string(GetParam().metric) == "random") return;
  if (std::string(GetParam().settings).find("exact") != std::string::npos) return;
  const std::vector<int64_t> order{2, 0, 1};
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 8, 6, 3, 2);
  const at::Tensor before = score(*model, {batch}).values;
  AttentionWeights w = model->attention(1);
  std::vector<int64_t> rows;
  for (int64_t head : order) rows.insert(rows.end(), {2 * head, 2 * head + 1});
  const at::Tensor index = at::tensor(rows, at::kLong);
  for (at::Tensor* t : {&w.q, &w.k, &w.v, &w.q_bias, &w.k_bias, &w.v_bias}) {
    *t = t->index_select(0, index);
  }
  w.o = w.o.index_select(1, index);
  model->replace_attention(1, w, {0, 1, 2});
  at::Tensor expected = before.clone();
  expected[1] = before[1].index_select(0, at::tensor(order, at::kLong));
  EXPECT_TRUE(at::allclose(score(*model, {batch}).values, expected, 1e-8, 1e-10));
}

TEST_P(EveryScorer, HeadsThatAreGoneScoreZeroAndTheRestKeepTheirIndices) {
  const auto model = testing::random_toy_model({3, 4, 2, 5}, 3, 1);
  at::Tensor keep = at::ones({3, 4}, at::kBool);
  keep[0][1] = false;
  keep[1] = false;
  remove_heads(*model, HeadMask(keep));
  const at::Tensor values = score(*model, {testing::random_toy_batch(kLayout, 8, 6, 3, 2)}).values;
  EXPECT_EQ(values.sizes(), (std::vector<int64_t>{3, 4}));
  EXPECT_TRUE(values.masked_select(keep.logical_not()).eq(0).all().item<bool>());
  EXPECT_TRUE(values.masked_select(keep).ne(0).any().item<bool>());
}

TEST_P(EveryScorer, TheModelIsAsBefore) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const std::string before = model->fingerprint();
  score(*model, {testing::random_toy_batch(kLayout, 8, 6, 3, 2)});
  EXPECT_EQ(model->fingerprint(), before);
  bool first = true;
  for (const auto& [name, tensor] : model->parameters()) {
    EXPECT_FALSE(tensor.requires_grad()) << name;
    EXPECT_FALSE(tensor.grad().defined()) << name;
    at::Tensor(tensor).set_requires_grad(first);
    first = !first;
  }
  score(*model, {testing::random_toy_batch(kLayout, 8, 6, 3, 2)});
  first = true;
  for (const auto& [name, tensor] : model->parameters()) {
    EXPECT_EQ(tensor.requires_grad(), first) << name;
    EXPECT_FALSE(tensor.grad().defined()) << name;
    first = !first;
  }
}

TEST_P(EveryScorer, ResultsSayHowTheyCameAboutAndSurviveJson) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const HeadScores scores = score(*model, {testing::random_toy_batch(kLayout, 8, 6, 3, 2)});
  EXPECT_EQ(scores.metric, GetParam().metric);
  EXPECT_NO_THROW(scores.check("test"));
  const HeadScores read = HeadScores::from_json(scores.to_json());
  EXPECT_TRUE(at::equal(read.values, scores.values));
  EXPECT_EQ(nlohmann::json::parse(read.settings), nlohmann::json::parse(scores.settings));
  if (!reads_data()) return;
  EXPECT_GT(scores.samples, 0);
  EXPECT_THROW(score(*model, {}), std::invalid_argument);
}

TEST_P(EveryScorer, HeadsThatWriteNothingHaveNoEffect) {
  const std::string metric = GetParam().metric;
  for (const char* other : {"flap", "attention_entropy", "confidence", "weight_norm", "hies",
                            "random", "all_but_one"}) {
    if (metric == other) return;
  }
  if (metric == "greedy_gnorm") {
    if (std::string(GetParam().settings) == "{}") return;
  }
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  model->attention(0).o.slice(1, 2, 4).zero_();
  EXPECT_NEAR(
      score(*model, {testing::random_toy_batch(kLayout, 8, 6, 3, 2)}).values[0][1].item<double>(),
      0, 1e-14);
}

INSTANTIATE_TEST_SUITE_P(Registry, EveryScorer, ::testing::ValuesIn(cases()),
                         [](const ::testing::TestParamInfo<Case>& info) {
                           return std::to_string(info.index) + "_" + info.param.metric;
                         });

TEST(ScorersTest, EveryRegisteredMetricIsAmongTheCasesAndDescribesItsSettings) {
  for (const ScorerInfo& each : scorers()) {
    bool found = false;
    for (const Case& one : cases()) found = found || each.name == one.metric;
    EXPECT_TRUE(found) << each.name;
    EXPECT_FALSE(each.definition.empty() || each.source.empty() || each.cost.empty() ||
                 each.needs.empty());
    for (const SettingInfo& setting : each.settings) {
      EXPECT_FALSE(setting.meaning.empty());
      const nlohmann::json given{{setting.name, nlohmann::json::parse(setting.standard)}};
      EXPECT_NO_THROW(make_scorer(each.name, given.dump()));
      EXPECT_THROW(make_scorer(each.name, nlohmann::json{{setting.name, nullptr}}.dump()),
                   std::invalid_argument);
    }
    EXPECT_THROW(make_scorer(each.name, R"({"unknown": 1})"), std::invalid_argument);
    EXPECT_THROW(make_scorer(each.name, "[]"), std::invalid_argument);
  }
}

}  // namespace
}  // namespace headkit
