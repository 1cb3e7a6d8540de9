#include "headkit/explain/effect_faithfulness.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "headkit/explain/measure_effects.h"
#include "planted_effects.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

using testing::PlantedEffects;

TEST(EffectFaithfulness, OfAdditiveHeadsAreSumsOfWhatWasPlanted) {
  PlantedEffects model(2, 2, 5, {{0, 0, 1, 0.5}, {0, 1, 2, -2}, {1, 0, 3, 3}, {1, 1, 4, 0.25}},
                       [](const at::Tensor& f) { return f.slice(1, 1).sum(1); });
  const auto metric = make_output_metric("logit");
  EffectOptions how{.ablation = "zero"};
  how.choice.target = at::zeros({1}, at::kLong);
  const auto effects = measure_effects(model, model.batch(), *metric, how);
  for (const std::string by : {"toggle", "gate_gradient", "direct"}) {
    const auto found = effect_faithfulness(model, model.batch(), *metric, effects,
                                           {.by = by, .curves = {.grid = "all"}});
    ASSERT_EQ(found.size(), 1u);
    EXPECT_EQ(found[0].order, (std::vector<int64_t>{2, 0, 3, 1}));
    EXPECT_EQ(found[0].metric, "logit");
    EXPECT_EQ(found[0].ablation, "zero");
    EXPECT_NEAR(found[0].value_all, 1.75, 1e-9);
    const std::vector<double> removed{3, 3.5, 3.75, 1.75}, kept{-1.25, -1.75, -2, 0};
    for (size_t k = 0; k < 4; ++k) {
      EXPECT_NEAR(found[0].comprehensiveness.values[k], removed[k], 1e-9);
      EXPECT_NEAR(found[0].sufficiency.values[k], kept[k], 1e-9);
    }
    EXPECT_NEAR(*found[0].comprehensiveness_aopc[1].normalised, 1, 1e-9) << "no order is better";
    EXPECT_NEAR(*found[0].sufficiency_aopc[1].normalised, 0, 1e-9);
  }
}

TEST(EffectFaithfulness, LeavesClosedHeadsClosedAndRefusesWhatDoesNotFit) {
  const HeadLayout layout{.layers = 2, .heads = 3, .head_dim = 2, .model_dim = 5};
  const auto model = testing::random_toy_model(layout, 3, 7);
  const Batch batch = testing::random_toy_batch(layout, 3, 6, 3, 2);
  const auto metric = make_output_metric("class_margin");
  EffectOptions how{.ablation = "zero"};
  how.gates.heads = at::tensor({1., 0., 1., 1., 1., 0.}, at::kDouble).reshape({2, 3});
  const auto effects = measure_effects(*model, batch, *metric, how);
  const auto found = effect_faithfulness(*model, batch, *metric, effects);
  for (size_t b = 0; b < 3; ++b) {
    EXPECT_EQ(found[b].order.size(), 4u);
    EXPECT_NEAR(found[b].value_all, effects[b].value, 1e-9);
    EXPECT_NEAR(found[b].comprehensiveness.values[0],
                std::max({effects[b].heads[0].toggle->frozen, effects[b].heads[2].toggle->frozen,
                          effects[b].heads[3].toggle->frozen, effects[b].heads[4].toggle->frozen}),
                1e-9);
  }
  EXPECT_THROW(effect_faithfulness(*model, batch, *make_output_metric("logit"), effects),
               std::invalid_argument);
  EXPECT_THROW(effect_faithfulness(*model, batch, *metric, {effects[0]}), std::invalid_argument);
  EXPECT_THROW(effect_faithfulness(*model, batch, *metric, effects, {.by = "norm"}),
               std::invalid_argument);
  auto bare = effects;
  bare[1].heads[0].toggle.reset();
  EXPECT_THROW(effect_faithfulness(*model, batch, *metric, bare), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
