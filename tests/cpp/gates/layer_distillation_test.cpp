#include "headkit/gates/layer_distillation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "headkit/models/objective.h"
#include "support/planted_labels.h"

namespace headkit {
namespace {

using Matched = std::vector<int64_t>;

const std::vector<bool> kOpen{true, true, true, true};

TEST(MatchLayersTest, NearestTakesTheNearestLayerOfAll) {
  const at::Tensor distance = at::tensor({3., 1., 2., 4., 0., 5., 5., 5.}, at::kDouble);
  const auto match = [&](LayerMatching matching, const std::vector<bool>& open) {
    return match_layers(distance.reshape({2, 4}), matching, open);
  };
  EXPECT_EQ(match(LayerMatching::kNearest, kOpen), (Matched{1, 0}));
  EXPECT_EQ(match(LayerMatching::kNearest, {true, false, true, true}), (Matched{1, 0}));
}

TEST(MatchLayersTest, OrderedKeepsTheOrderAndSkipsClosedLayers) {
  const at::Tensor distance =
      at::tensor({9., 8., 7., 1., 9., 8., 1., 2., 9., 7., 1., 8.}, at::kDouble).reshape({3, 4});
  const auto match = [&](const std::vector<bool>& open) {
    return match_layers(distance, LayerMatching::kOrdered, open);
  };
  EXPECT_EQ(match(kOpen), (Matched{0, 1, 2}));
  EXPECT_EQ(match({true, true, false, true}), (Matched{-1, 0, 1}));
}

// Trap 16: the released code fails where no layer is left.
TEST(MatchLayersTest, AcceptsThatNoLayerIsLeft) {
  const at::Tensor distance = at::ones({3, 4}, at::kDouble);
  const auto match = [&](const std::vector<bool>& open) {
    return match_layers(distance, LayerMatching::kOrdered, open);
  };
  EXPECT_EQ(match({false, false, false, false}), (Matched{-1, -1, -1}));
  EXPECT_EQ(match({false, false, true, false}), (Matched{-1, -1, 2}));
  EXPECT_EQ(match(kOpen), (Matched{-1, -1, 0}));
  EXPECT_THROW(match_layers(distance, LayerMatching::kOrdered, {true}), std::invalid_argument);
}

TEST(LayerDistillationTest, LossIsTheMeanSquareOverValidTokensOnly) {
  const LayerDistillation distillation(
      {.model_dim = 3, .teacher_layers = {1, 2}, .matching = LayerMatching::kNearest});
  const at::Tensor student = at::randn({2, 4, 3}, at::kDouble);
  const at::Tensor near = student + 0.5;
  const at::Tensor valid =
      at::tensor({1, 1, 1, 0, 1, 0, 0, 0}, at::kLong).reshape({2, 4}).to(at::kBool);
  at::Tensor padded = near.clone();
  padded[0][3] = 100;
  padded[1][2] = -100;
  const at::Tensor loss =
      distillation.layer_loss({student, student + 7}, {padded, padded}, valid, {true, true});
  EXPECT_NEAR(loss.item<double>(), 2 * 0.25, 1e-6);
  const at::Tensor slope = torch::autograd::grad({loss}, {distillation.projection()})[0];
  EXPECT_GT(slope.abs().max().item<double>(), 0);
  const LayerDistillation ordered({.model_dim = 3, .teacher_layers = {1, 2}});
  EXPECT_EQ(ordered.layer_loss({student}, {near, near}, valid, {false}).item<double>(), 0);
}

TEST(LayerDistillationTest, AStudentLikeItsTeacherHasNoLoss) {
  const testing::PlantedHeads planted = testing::planted_heads(2);
  GatedModel& model = *planted.model;
  const Batch& batch = planted.batches[0];
  const LayerDistillation distillation({.model_dim = 6, .teacher_layers = {1, 2}});
  const ModelState state = model.embed(batch);
  EXPECT_NEAR(distillation.loss(model, state, model, {}).item<double>(), 0, 1e-12);

  GateSet gates;
  gates.heads = planted.needed.keep().to(at::kDouble);
  const at::Tensor prediction =
      kl_to_dense(2)->loss(model(batch, gates), batch, model(batch)).mean();
  const LayerDistillation predictions(
      {.model_dim = 6, .layer_weight = 0, .prediction_weight = 0.3});
  EXPECT_NEAR(predictions.loss(model, state, model, gates).item<double>(),
              0.3 * prediction.item<double>(), 1e-9);
  const auto hidden_after = [&](int64_t layers, const GateSet& set) {
    return model.run(state, 0, layers, set).hidden;
  };
  double layers = 0;
  for (int64_t l : {1, 2}) {
    const at::Tensor square = (hidden_after(l, gates) - hidden_after(l, {})).square().mean(2);
    const at::Tensor valid = batch.at("attention_mask").to(at::kDouble);
    layers += ((square * valid).sum() / valid.sum()).item<double>();
  }
  const LayerDistillation whole(
      {.model_dim = 6, .teacher_layers = {1, 2}, .layer_weight = 0.7, .prediction_weight = 0.3});
  EXPECT_NEAR(whole.loss(model, state, model, gates).item<double>(),
              0.3 * prediction.item<double>() + 0.7 * layers, 1e-6);
  EXPECT_THROW(LayerDistillation({.model_dim = 6, .teacher_layers = {2, 1}}),
               std::invalid_argument);
  EXPECT_THROW(
      LayerDistillation({.model_dim = 6, .teacher_layers = {3}}).loss(model, state, model, {}),
      std::invalid_argument);
}

// Trap 16: a student without any attention block left.
TEST(LayerDistillationTest, AnEmptiedStudentHasThePredictionLossAlone) {
  const testing::PlantedHeads planted = testing::planted_heads(2);
  GatedModel& model = *planted.model;
  const Batch& batch = planted.batches[0];
  GateSet gates;
  gates.attention_sublayers = at::zeros({2}, at::kDouble);
  const LayerDistillation distillation({.model_dim = 6, .teacher_layers = {1, 2}});
  const double prediction =
      kl_to_dense(2)->loss(model(batch, gates), batch, model(batch)).mean().item<double>();
  EXPECT_GT(prediction, 0);
  EXPECT_NEAR(distillation.loss(model, model.embed(batch), model, gates).item<double>(),
              0.1 * prediction, 1e-9);
}

}  // namespace
}  // namespace headkit
