#include "headkit/scorers/ablation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "headkit/pruners/removal.h"
#include "headkit/scorers/random_score.h"
#include "support/golden.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 2, .model_dim = 5};

HeadScores score(GatedModel& model, const std::vector<Batch>& batches,
                 const Objective& objective = *cross_entropy(), ScoreOptions options = {}) {
  return AblationScorer().score(model, BatchList(batches), objective, options);
}

at::Tensor flips_of(const HeadScores& scores) {
  return testing::golden_tensor(nlohmann::json::parse(scores.settings)["flips"]);
}

TEST(AblationTest, GoldenLeaveOneOut) {
  const auto& golden = testing::golden_case("toy.ablation");
  const auto model = testing::golden_toy_model();
  const HeadScores scores = score(*model, {testing::golden_toy_batch()});
  testing::expect_golden(scores.values, golden, "leave_one_out");
  testing::expect_golden(flips_of(scores), golden, "flips");
}

TEST(AblationTest, EqualsBruteForceForEveryObjective) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 7, 6, 3, 2);
  const at::Tensor dense = (*model)(batch);
  for (const auto& objective : {cross_entropy(), margin(), kl_to_dense(2.0), cosine_to_dense()}) {
    const HeadScores scores = score(
        *model, {select_examples(batch, at::arange(5)), select_examples(batch, at::arange(5, 7))},
        *objective);
    const double base = objective->loss(dense, batch, dense).mean().item<double>();
    for (int64_t layer = 0; layer < 3; ++layer) {
      for (int64_t head = 0; head < 4; ++head) {
        GateSet gates;
        gates.heads = at::ones({3, 4}, at::kDouble);
        gates.heads[layer][head] = 0;
        const at::Tensor output = (*model)(batch, gates);
        EXPECT_NEAR(scores.values[layer][head].item<double>(),
                    objective->loss(output, batch, dense).mean().item<double>() - base, 1e-12)
            << objective->name();
        EXPECT_EQ(flips_of(scores)[layer][head].item<int64_t>(),
                  output.argmax(1).ne(dense.argmax(1)).sum().item<int64_t>());
      }
    }
  }
}

TEST(AblationTest, BatchSizeAndPaddingDoNotShow) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  Batch all = testing::random_toy_batch(kLayout, 7, 6, 3, 2);
  const HeadScores expected = score(*model, {all});
  std::vector<Batch> singles;
  for (int64_t i = 0; i < 7; ++i) singles.push_back(select_examples(all, at::arange(i, i + 1)));
  const HeadScores found = score(*model, singles);
  EXPECT_TRUE(at::allclose(found.values, expected.values, 1e-12, 1e-12));
  EXPECT_TRUE(at::allclose(found.lower, expected.lower, 1e-12, 1e-12));
  all["x"] = at::constant_pad_nd(all["x"], {0, 0, 0, 9}, 2.5);
  all["attention_mask"] = at::constant_pad_nd(all["attention_mask"], {0, 9}, false);
  EXPECT_TRUE(at::allclose(score(*model, {all}).values, expected.values, 1e-12, 1e-12));
}

TEST(AblationTest, LongBatchesAreCutIntoSeveralForwards) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  // 9,200 tokens a batch: one head at a time.
  const Batch batch = testing::random_toy_batch(kLayout, 46, 20, 3, 2);
  Batch wide;
  for (const auto& [name, tensor] : batch)
    wide[name] = at::cat(std::vector<at::Tensor>(10, tensor));
  EXPECT_TRUE(
      at::allclose(score(*model, {wide}).values, score(*model, {batch}).values, 1e-9, 1e-12));
}

// Counts the work: layers run times examples, heads that are open in them, and calls.
class CountingModel final : public GatedModel {
 public:
  explicit CountingModel(std::shared_ptr<testing::ToyModel> model) : model_(std::move(model)) {}
  HeadLayout layout() const override { return model_->layout(); }
  HeadMask heads() const override { return model_->heads(); }
  ModelState embed(const Batch& batch) override { return model_->embed(batch); }
  ModelState run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                 Taps* taps) override {
    const int64_t examples = state.hidden.size(0);
    work += (last - first) * examples;
    ++calls;
    open_heads += gates.heads.defined()
                      ? gates.heads.narrow(1, first, last - first).ne(0).sum().item<int64_t>()
                      : (last - first) * examples * layout().heads;
    EXPECT_TRUE(gates.skip);
    return model_->run(state, first, last, gates, taps);
  }
  at::Tensor head(const ModelState& state) override { return model_->head(state); }
  AttentionWeights attention(int64_t layer) override { return model_->attention(layer); }
  void replace_attention(int64_t layer, const AttentionWeights& weights,
                         const std::vector<int64_t>& kept) override {
    model_->replace_attention(layer, weights, kept);
  }
  std::vector<std::pair<std::string, at::Tensor>> parameters() override {
    return model_->parameters();
  }
  int64_t work = 0, open_heads = 0, calls = 0;

 private:
  std::shared_ptr<testing::ToyModel> model_;
};

TEST(AblationTest, TheSharedPrefixRunsOnce) {
  CountingModel model(testing::random_toy_model(kLayout, 3, 1));
  score(model, {testing::random_toy_batch(kLayout, 5, 6, 3, 2)});
  // Dense: 3 layers. Four heads of layer 0 run 3 layers, of layer 1 two, of layer 2 one.
  EXPECT_EQ(model.work, 5 * (3 + 4 * (3 + 2 + 1)));
}

TEST(AblationTest, CostsLessThanAForwardForEachHead) {
  for (const HeadLayout& layout : {kLayout, HeadLayout{1, 5, 2, 5}, HeadLayout{6, 2, 2, 5}}) {
    CountingModel model(testing::random_toy_model(layout, 3, 1));
    score(model, {testing::random_toy_batch(layout, 5, 6, 3, 2)});
    const int64_t layers = layout.layers, heads = layout.heads;
    // The variants of a layer are one gated batch: beside the dense run one call for each layer.
    EXPECT_EQ(model.calls, 2 * layers);
    int64_t expected = layers * heads;
    for (int64_t layer = 0; layer < layers; ++layer) {
      expected += heads * ((layers - layer) * heads - 1);
    }
    EXPECT_EQ(model.open_heads, 5 * expected);
    const int64_t forwards = layers * heads;
    EXPECT_LE(model.work, 5 * layers * (forwards + 1));
    EXPECT_LE(model.open_heads, 5 * layers * heads * forwards);
  }
}

TEST(AblationTest, HeadsThatWriteNothingOrAreGoneScoreZero) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  model->attention(1).o.slice(1, 2, 4).zero_();
  at::Tensor keep = at::ones({3, 4}, at::kBool);
  keep[0][2] = false;
  remove_heads(*model, HeadMask(keep));
  const HeadScores scores = score(*model, {testing::random_toy_batch(kLayout, 5, 6, 3, 2)});
  EXPECT_NEAR(scores.values[1][1].item<double>(), 0, 1e-14);
  EXPECT_EQ(scores.values[0][2].item<double>(), 0);
  EXPECT_NE(scores.values[0][3].item<double>(), 0);
}

TEST(AblationTest, RefusesWhatSaysNothing) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 5, 6, 3, 2);
  EXPECT_THROW(score(*model, {}), std::invalid_argument);
  Batch infinite = batch;
  infinite["x"] = at::full_like(batch.at("x"), INFINITY);
  EXPECT_THROW(score(*model, {infinite}), std::runtime_error);
  for (int64_t layer = 0; layer < 3; ++layer) model->attention(layer).o.zero_();
  EXPECT_THROW(score(*model, {batch}), std::runtime_error);
}

TEST(AblationTest, AnInterruptionEndsIt) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 5, 6, 3, 2);
  struct Stop {};
  ScoreOptions options;
  options.progress = [](int64_t, int64_t) { throw Stop{}; };
  EXPECT_THROW(score(*model, {batch, batch}, *cross_entropy(), options), Stop);
}

TEST(RandomScorerTest, RepeatsWithItsSeedAndLooksAtNoData) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const auto draw = [&](uint64_t seed) {
    return RandomScorer().score(*model, BatchList({}), *cross_entropy(), {.seed = seed}).values;
  };
  EXPECT_TRUE(at::equal(draw(1), draw(1)));
  EXPECT_FALSE(at::equal(draw(1), draw(2)));
  EXPECT_TRUE(draw(1).gt(0).logical_and(draw(1).le(1)).all().item<bool>());
  at::Tensor sum = at::zeros({3, 4}, at::kDouble);
  for (uint64_t seed = 0; seed < 2000; ++seed) sum += draw(seed);
  EXPECT_TRUE((sum / 2000 - 0.5).abs().lt(0.03).all().item<bool>());

  at::Tensor keep = at::ones({3, 4}, at::kBool);
  keep[2][3] = false;
  const at::Tensor before = draw(5);
  remove_heads(*model, HeadMask(keep));
  EXPECT_TRUE(at::equal(draw(5), before * keep.to(at::kDouble)));
}

TEST(ScorersTest, TheRegistryDescribesAndMakesEachOfThem) {
  for (const ScorerInfo& each : scorers()) {
    EXPECT_NE(make_scorer(each.name), nullptr);
    EXPECT_FALSE(each.definition.empty() || each.source.empty() || each.cost.empty() ||
                 each.needs.empty());
  }
  try {
    make_scorer("nonsense");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("gate_gradient, fisher, ablation"), std::string::npos);
  }
}

}  // namespace
}  // namespace headkit
