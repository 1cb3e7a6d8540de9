#include "headkit/pruners/hies_tuning.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "headkit/models/data_hash.h"
#include "headkit/scorers/hies.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 2, .model_dim = 5};

struct Problem {
  std::shared_ptr<testing::ToyModel> model = testing::random_toy_model(kLayout, 3, 1);
  BatchList data{{testing::random_toy_batch(kLayout, 9, 6, 3, 2)}};
  Batch held_out = testing::random_toy_batch(kLayout, 7, 6, 3, 3);
  BatchList validation{
      {select_examples(held_out, at::arange(2)), select_examples(held_out, at::arange(2, 7))}};
};

TEST(HiesTuningTest, TakesTheAlphaOfLeastValidationLoss) {
  Problem p;
  for (const char* normalization : {"none", "layer_l2"}) {
    HiesTuningOptions options;
    options.share.keep = 0.5;
    options.score.normalization = normalization;
    const HiesTuning found = tune_hies(*p.model, p.data, p.validation, *cross_entropy(), options);
    ASSERT_EQ(found.alphas.size(), 11U);
    for (size_t i = 0; i < found.alphas.size(); ++i) {
      const HeadScores scores = HiesScorer({.alpha = found.alphas[i]})
                                    .score(*p.model, p.data, *cross_entropy(),
                                           {.normalization = normalization, .bootstrap = 0});
      const HeadMask mask = prune_top_fraction(scores, {.keep = 0.5});
      EXPECT_EQ(found.masks[i], mask) << found.alphas[i];
      const double loss =
          cross_entropy()
              ->loss((*p.model)(p.held_out, GateSet::from_mask(mask)), p.held_out, {})
              .mean()
              .item<double>();
      EXPECT_NEAR(found.losses[i], loss, 1e-12);
    }
    const double least = *std::min_element(found.losses.begin(), found.losses.end());
    for (size_t i = 0; i < found.alphas.size(); ++i) {
      if (found.alphas[i] == found.alpha) {
        EXPECT_EQ(found.losses[i], least);
      }
      if (found.alphas[i] > found.alpha) {
        EXPECT_GT(found.losses[i], least);
      }
    }
    EXPECT_EQ(found.data_hash, data_hash(p.data));
    EXPECT_EQ(found.validation_hash, data_hash(p.validation));
  }
}

TEST(HiesTuningTest, RefusesValidationDataThatWereScoredOn) {
  Problem p;
  const BatchList leaking(
      {select_examples(p.held_out, at::arange(3)), testing::random_toy_batch(kLayout, 9, 6, 3, 2)});
  EXPECT_THROW(tune_hies(*p.model, p.data, leaking, *cross_entropy()), std::invalid_argument);
  EXPECT_THROW(tune_hies(*p.model, p.data, p.validation, *cross_entropy(), {.alphas = {1.5}}),
               std::invalid_argument);
  EXPECT_THROW(tune_hies(*p.model, p.data, BatchList({}), *cross_entropy()), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
