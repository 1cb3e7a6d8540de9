#include "headkit/explain/causal_head_gating.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "planted_effects.h"

namespace headkit {
namespace {

using testing::PlantedEffects;

TEST(CausalHeadGatingTest, PlantedHeadsGetTheirLabels) {
  // A helpful head, a harmful one, and one whose output is not read.
  PlantedEffects model(1, 3, 4, {{0, 0, 1, 2}, {0, 1, 1, -2}, {0, 2, 3, 1}},
                       [](const at::Tensor& f) { return f.select(1, 1); });
  Batch batch = model.batch(2);
  batch["labels"] = at::zeros({2}, at::kLong);
  const BatchList data({batch});
  const CausalGating found =
      causal_head_gating(model, data, *cross_entropy(), {.start_steps = 30, .pressed_steps = 120});
  EXPECT_EQ(found.labels,
            (std::vector<std::vector<std::string>>{{"facilitating", "interfering", "irrelevant"}}));
  EXPECT_TRUE(found.agreement.eq(1).all().item<bool>());
  EXPECT_EQ(found.inconsistent(), 0);
  EXPECT_EQ(found.examples, 2);
  const std::vector<at::Tensor> scores{found.facilitating, found.interfering, found.irrelevant};
  for (int64_t h = 0; h < 3; ++h) {
    for (int64_t s = 0; s < 3; ++s) {
      const double score = scores[static_cast<size_t>(s)][0][h].item<double>();
      if (s == h) {
        EXPECT_GT(score, 0.9);
      } else {
        EXPECT_LT(score, 0.1);
      }
    }
  }
  EXPECT_NE(found.to_json().find("\"labels\":[[\"facilitating\""), std::string::npos);
}

TEST(CausalHeadGatingTest, LabelsFollowTheDirectionOfThePressure) {
  EXPECT_EQ(causal_label(0.9, 0.8), "facilitating");
  EXPECT_EQ(causal_label(0.2, 0.1), "interfering");
  EXPECT_EQ(causal_label(0.9, 0.1), "irrelevant");
  EXPECT_EQ(causal_label(0.1, 0.9), "inconsistent");  // as with swapped signs
}

TEST(CausalHeadGatingTest, TooFewFitsAreRefused) {
  PlantedEffects model(1, 1, 2, {{0, 0, 1, 1}}, [](const at::Tensor& f) { return f.select(1, 1); });
  Batch batch = model.batch();
  batch["labels"] = at::zeros({1}, at::kLong);
  const BatchList data({batch});
  EXPECT_THROW(causal_head_gating(model, data, *cross_entropy(), {.fits = 4}),
               std::invalid_argument);
  EXPECT_THROW(causal_head_gating(model, data, *cross_entropy(), {.pressure = 0}),
               std::invalid_argument);
  EXPECT_THROW(causal_head_gating(model, BatchList({}), *cross_entropy()), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
