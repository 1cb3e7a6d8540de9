#include "headkit/pruners/iterative.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "headkit/pruners/mean_output.h"
#include "headkit/pruners/removal.h"
#include "pruners/masked_model.h"
#include "support/golden.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 2, .model_dim = 5};

TEST(IterativeTest, GoldenExactReestimation) {
  const auto& golden = testing::golden_case("toy.exact_reestimation");
  const auto model = testing::golden_toy_model();
  const Batch batch = testing::golden_toy_batch();
  const auto details = nlohmann::json::parse(
      prune_iteratively(*model, BatchList({batch}), *cross_entropy(), {.share = {.keep = 0}})
          .details);
  EXPECT_EQ(details["order"], golden["expected"]["order"]);
  testing::expect_golden(at::tensor(details["scores"].get<std::vector<double>>(), at::kDouble),
                         golden, "score_when_removed");
  std::vector<double> losses;
  at::Tensor keep = at::ones({2, 3}, at::kBool);
  for (size_t step = 0;; ++step) {
    losses.push_back(cross_entropy()->loss((*model)(batch), batch, {}).mean().item<double>());
    if (step == 6) break;
    keep[details["order"][step][0].get<int64_t>()][details["order"][step][1].get<int64_t>()] =
        false;
    remove_heads(*model, HeadMask(keep));
  }
  testing::expect_golden(at::tensor(losses, at::kDouble), golden, "mean_loss");
}

// Scores of a smaller model are those of the larger one with heads closed, for every metric.
TEST(IterativeTest, StepsScoreTheModelThatIsLeft) {
  const Batch batch = testing::random_toy_batch(kLayout, 7, 6, 3, 2);
  const BatchList data({batch});
  for (const char* metric : {"gate_gradient", "ablation"}) {
    const auto model = testing::random_toy_model(kLayout, 3, 1);
    const HeadMask found = prune_iteratively(*model, data, *cross_entropy(),
                                             {.metric = metric, .step = 3, .share = {.keep = 0.25}})
                               .heads;
    for (int64_t left = 9; left >= 3; left -= 3) {
      const HeadScores scores =
          make_scorer(metric)->score(*model, data, *cross_entropy(), {.bootstrap = 0});
      remove_heads(*model, prune_top_fraction(scores, {.keep = static_cast<double>(left) / 12,
                                                       .candidates = model->heads()}));
    }
    EXPECT_EQ(found, model->heads()) << metric;
  }
}

TEST(IterativeTest, CompensatedHeadsAreScoredAgainstTheirMeans) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const BatchList data({testing::random_toy_batch(kLayout, 7, 6, 3, 2)});
  const StaticPruning found = prune_iteratively(
      *model, data, *cross_entropy(), {.step = 6, .share = {.keep = 0.5}, .compensate = true});
  const HeadScores scores =
      make_scorer("gate_gradient")
          ->score(*model, data, *cross_entropy(),
                  {.bootstrap = 0, .dropped_output = mean_head_outputs(*model, data)});
  EXPECT_EQ(found.heads, prune_top_fraction(scores, {.keep = 0.5}));
  EXPECT_TRUE(at::allclose(
      found.gates.dropped_output,
      mean_head_outputs(*model, data, {.gates = GateSet::from_mask(found.heads)}), 1e-12, 1e-12));
}

// Also after heads are gone, KL and cosine compare with the model that all this began from.
TEST(IterativeTest, DenseIsTheWholeModel) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 7, 6, 3, 2);
  const BatchList data({batch});
  const at::Tensor dense = (*model)(batch);
  for (const auto& objective : {kl_to_dense(), cosine_to_dense()}) {
    const auto loss = [&](const at::Tensor& keep) {
      GateSet gates;
      gates.heads = keep;
      return objective->loss((*model)(batch, gates), batch, dense).mean().item<double>();
    };
    const auto details = nlohmann::json::parse(
        prune_iteratively(*model, data, *objective,
                          {.metric = "ablation", .step = 2, .share = {.keep = 0.25}})
            .details);
    at::Tensor keep = at::ones({3, 4}, at::kDouble);
    at::Tensor rises;
    for (size_t gone = 0; gone < 9; ++gone) {
      if (gone % 2 == 0) {
        rises = at::full({3, 4}, INFINITY, at::kDouble);
        const double now = loss(keep);
        for (int64_t place = 0; place < 12; ++place) {
          if (keep.flatten()[place].item<double>() == 0) continue;
          at::Tensor fewer = keep.clone();
          fewer.flatten()[place] = 0;
          rises.flatten()[place] = loss(fewer) - now;
        }
      }
      const int64_t least = rises.argmin().item<int64_t>();
      EXPECT_EQ(details["order"][gone], nlohmann::json({least / 4, least % 4}));
      EXPECT_NEAR(details["scores"][gone], rises.min().item<double>(), 1e-12);
      rises.flatten()[least] = INFINITY;
      keep.flatten()[least] = 0;
    }

    MaskedModel masked(*model, HeadMask(keep));
    const HeadScores shares = make_scorer("shapley")->score(masked, data, *objective, {});
    EXPECT_NEAR(shares.values.sum().item<double>(), loss(at::zeros_like(keep)) - loss(keep), 1e-12);
  }
}

TEST(IterativeTest, OneStepIsOneShot) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const BatchList data({testing::random_toy_batch(kLayout, 7, 6, 3, 2)});
  const HeadScores scores = make_scorer("gate_gradient")->score(*model, data, *cross_entropy(), {});
  const auto iterative = [&](int64_t step, TopFractionOptions share) {
    return prune_iteratively(*model, data, *cross_entropy(), {.step = step, .share = share}).heads;
  };
  EXPECT_EQ(iterative(6, {.keep = 0.5}), prune_top_fraction(scores, {.keep = 0.5}));
  EXPECT_EQ(iterative(12, {.keep = 0.5, .min_per_layer = 1}),
            prune_top_fraction(scores, {.keep = 0.5, .min_per_layer = 1}));
  EXPECT_EQ(iterative(12, {.keep = 0.5, .per_layer = true}),
            prune_top_fraction(scores, {.keep = 0.5, .per_layer = true}));
  const HeadMask even = iterative(1, {.keep = 0.5, .per_layer = true});
  for (int64_t layer = 0; layer < 3; ++layer) EXPECT_EQ(even.layer_heads(layer).size(), 2u);
}

TEST(PrunerSettingsTest, UnknownAndWrongOnesAreNamed) {
  const auto model = testing::golden_toy_model();
  const BatchList data({testing::golden_toy_batch()});
  const auto message = [&](const char* method, const char* settings) -> std::string {
    PruneOptions options;
    options.settings = settings;
    try {
      prune(*model, data, *cross_entropy(), method, options);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message("iterative", "{\"steps\": 2}"),
            "[prune] expected settings of iterative among metric, step, granularity, "
            "normalization, denominator, seed; found 'steps'");
  EXPECT_EQ(message("iterative", "{\"step\": 2.5}"),
            "[prune] expected a whole number as step of iterative; found 2.5");
  EXPECT_EQ(message("iterative", "{\"metric\": \"magic\"}").substr(0, 34),
            "[score] expected a metric among ga");
  EXPECT_EQ(message("iterative", "[]"), "[prune] expected an object of settings; found []");
  EXPECT_EQ(message("iterative", "{\"step\": 2, \"granularity\": \"token\"}"), "");
  EXPECT_NE(message("nothing", "{}"), "");
  for (const PrunerInfo& each : pruners()) {
    for (const SettingInfo& setting : each.settings) {
      EXPECT_FALSE(setting.meaning.empty() || setting.standard.empty()) << each.name;
    }
  }
}

}  // namespace
}  // namespace headkit
