#include "headkit/explain/measure_effects.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "headkit/gates/layer_gate.h"
#include "headkit/gates/linear_gate.h"
#include "headkit/pruners/mean_output.h"
#include "headkit/scorers/bootstrap.h"
#include "planted_effects.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

using testing::PlantedEffects;

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 2, .model_dim = 5};

const HeadEffects& at_head(const InputEffects& effects, int64_t layer, int64_t head) {
  for (const HeadEffects& each : effects.heads) {
    if (each.head == HeadId{layer, head}) return each;
  }
  throw std::out_of_range("no such head");
}

InputEffects planted(PlantedEffects& model, EffectOptions options) {
  options.ablation = "zero";
  options.choice.target = at::zeros({1}, at::kLong);
  return measure_effects(model, model.batch(), *make_output_metric("logit"), options).front();
}

TEST(MeasureEffectsTest, AdditiveHeadsHaveOneEffectByEveryMeasure) {
  const std::vector<double> c{0.5, -2, 3, 0.25};
  PlantedEffects model(2, 2, 5,
                       {{0, 0, 1, c[0]}, {0, 1, 2, c[1]}, {1, 0, 3, c[2]}, {1, 1, 4, c[3]}},
                       [](const at::Tensor& f) { return f.slice(1, 1).sum(1); });
  for (const std::string index : {"fsii", "sii"}) {
    const InputEffects found =
        planted(model, {.path_nodes = 4, .pair_heads = 4, .game_heads = 4, .interaction = index});
    EXPECT_NEAR(found.value, 1.75, 1e-12);
    EXPECT_NEAR(*found.value_without_heads, 0, 1e-12);
    EXPECT_NEAR(*found.path_gap, 0, 1e-12);
    EXPECT_NEAR(*found.direct_residual, 0, 1e-12);
    ASSERT_EQ(found.heads.size(), 4u);
    for (size_t h = 0; h < 4; ++h) {
      const HeadEffects& head = found.heads[h];
      EXPECT_NEAR(*head.gate_gradient, c[h], 1e-12);
      EXPECT_NEAR(*head.integrated_gate_gradient, c[h], 1e-12);
      EXPECT_NEAR(head.toggle->frozen, c[h], 1e-12);
      EXPECT_NEAR(*head.direct, c[h], 1e-12);
      EXPECT_FALSE(head.direct_linearised);
      EXPECT_NEAR(*head.repair(), 0, 1e-12);
      EXPECT_NEAR(*head.shapley, c[h], 1e-12);
      EXPECT_NEAR(*head.write_norm, std::abs(c[h]), 1e-12);
      EXPECT_EQ(head.level(), "L2");
    }
    EXPECT_EQ(found.pairs.size(), 12u);
    for (const PairEffect& pair : found.pairs) {
      EXPECT_NEAR(pair.value, 0, 1e-9);
      EXPECT_EQ(pair.ablation, "zero");
    }
    // Relative to the residual stream: every token has norm 1 before layer 0.
    EXPECT_NEAR(*found.heads[1].relative_write_norm, 2, 1e-12);
    EXPECT_NEAR(*found.heads[2].relative_write_norm, 3 / std::sqrt(1 + 0.25 + 4), 1e-12);
  }
}

TEST(MeasureEffectsTest, AndPairsAndRedundantPairs) {
  for (const bool both : {true, false}) {
    PlantedEffects model(2, 1, 3, {{0, 0, 1, 1}, {1, 0, 2, 1}}, [both](const at::Tensor& f) {
      const at::Tensor sum = f.select(1, 1) + f.select(1, 2);
      return both ? (sum - 1).relu() : sum.clamp_max(1);
    });
    const InputEffects found = planted(model, {.pair_heads = 2, .game_heads = 2});
    ASSERT_EQ(found.pairs.size(), 2u);
    for (const PairEffect& pair : found.pairs) EXPECT_NEAR(pair.value, both ? 1 : -1, 1e-9);
    EXPECT_EQ(found.pairs[0].index, "synergy");
    EXPECT_EQ(found.pairs[1].index, "fsii");
    for (const HeadEffects& head : found.heads) {
      EXPECT_NEAR(*head.shapley, 0.5, 1e-12);
      EXPECT_FALSE(head.shapley_error);
      EXPECT_NEAR(head.toggle->frozen, both ? 1 : 0, 1e-12);
    }
  }
}

TEST(MeasureEffectsTest, HarmfulAndIrrelevantHeads) {
  PlantedEffects model(1, 3, 4, {{0, 0, 1, 1}, {0, 1, 1, -0.5}, {0, 2, 3, 1}},
                       [](const at::Tensor& f) { return f.select(1, 1).tanh(); });
  const InputEffects found = planted(model, {});
  EXPECT_GT(found.heads[0].toggle->frozen, 0);
  EXPECT_LT(found.heads[1].toggle->frozen, 0);
  EXPECT_LT(*found.heads[1].gate_gradient, 0);
  EXPECT_EQ(found.heads[2].toggle->frozen, 0);
  EXPECT_EQ(*found.heads[2].gate_gradient, 0);
}

TEST(MeasureEffectsTest, RepairIsWhatLaterHeadsMakeUpFor) {
  // Head (1, 0) writes 1 - what head (0, 0) wrote.
  PlantedEffects model(2, 1, 3, {{0, 0, 1, 1}, {1, 0, 2, -1, 1, -1}},
                       [](const at::Tensor& f) { return f.select(1, 1) + f.select(1, 2); });
  const InputEffects found = planted(model, {});
  EXPECT_NEAR(found.value, 1, 1e-12);
  EXPECT_NEAR(*found.heads[0].direct, 1, 1e-12);
  EXPECT_NEAR(found.heads[0].toggle->frozen, 0, 1e-12);
  EXPECT_NEAR(*found.heads[0].repair(), 1, 1e-12);
  EXPECT_NEAR(*found.heads[1].repair(), 0, 1e-12);
}

TEST(MeasureEffectsTest, DirectEffectsSkipLaterBlocks) {
  const HeadLayout layout{
      .layers = 2, .heads = 3, .head_dim = 2, .model_dim = 5, .feed_forward = 7};
  const auto model = testing::random_toy_model(layout, 3, 4);
  for (const auto& [name, tensor] : model->parameters()) tensor.requires_grad_(true);
  const Batch batch = testing::random_toy_batch(layout, 2, 4, 3, 5);
  const auto metric = make_output_metric("class_margin");
  const auto found = measure_effects(*model, batch, *metric, {.ablation = "zero"});
  const c10::NoGradGuard no_grad;
  Taps taps{.head_contexts = true};
  const at::Tensor output = (*model)(batch, {}, &taps);
  const MetricTarget target = metric->choose(output, {}, {}, {});
  const at::Tensor classifier = model->parameters()[model->parameters().size() - 2].second;
  const at::Tensor readout = classifier.index_select(0, target.target) -
                             classifier.index_select(0, target.distractor);  // [B, D]
  const at::Tensor valid = batch.at("attention_mask").to(at::kDouble);
  for (int64_t l = 0; l < 2; ++l) {
    const at::Tensor o = model->attention(l).o.reshape({5, 3, 2});
    const at::Tensor written = at::einsum("bthd,ehd->bthe", {taps.head_context[l], o});
    const at::Tensor mean =
        at::einsum("bthe,bt->bhe", {written, valid}) / valid.sum(1).reshape({2, 1, 1});
    const at::Tensor expected = at::einsum("bhe,be->bh", {mean, readout});
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t h = 0; h < 3; ++h) {
        const HeadEffects& head = at_head(found[static_cast<size_t>(b)], l, h);
        EXPECT_NEAR(*head.direct, expected[b][h].item<double>(), 1e-12);
        EXPECT_FALSE(head.direct_linearised);
      }
    }
  }
  EXPECT_NEAR(*found[0].direct_residual, 0, 1e-12);
}

// Head (0, 0) writes 1, which closes the gate of head (1, 1) that reads it with weight -1.
LayerGate routed_gate(int64_t features) {
  LayerGateSettings settings;
  settings.weight = at::zeros({2, 2, features}, at::kDouble);
  settings.weight[1][1][1] = -1;
  settings.reference = at::zeros({2, features}, at::kDouble);
  settings.static_logits = at::tensor({1.0, 1.0, 1.0, 0.5}, at::kDouble).reshape({2, 2});
  settings.fixed = at::tensor({1, 1, 1, 0}, at::kChar).reshape({2, 2});
  return LayerGate(settings);
}

TEST(MeasureEffectsTest, ARoutedChainHasItsMediatedEffect) {
  const double a = 2, b = 0.75;
  PlantedEffects model(
      2, 2, 5, {{0, 0, 1, 1}, {0, 1, 2, 1}, {1, 0, 3, 1}, {1, 1, 4, 1}},
      [=](const at::Tensor& f) { return a * f.select(1, 1) + b * f.select(1, 4); });
  const LayerGate gate = routed_gate(5);
  const InputEffects found = planted(model, {.policy = &gate});
  EXPECT_EQ(found.routing, "measured");
  EXPECT_NEAR(found.value, a, 1e-12);  // (1, 1) is off
  const HeadEffects& chain = at_head(found, 0, 0);
  EXPECT_NEAR(chain.toggle->frozen, a, 1e-12);
  EXPECT_NEAR(*chain.toggle->redecided, a - b, 1e-12);
  EXPECT_NEAR(*chain.toggle->routing_mediated(), -b, 1e-12);
  ASSERT_EQ(chain.flipped_gates.size(), 1u);
  EXPECT_EQ(chain.flipped_gates[0], (FlippedGate{{1, 1}, true}));
  for (const auto& [layer, head] : {std::pair{0, 1}, {1, 0}, {1, 1}}) {
    const HeadEffects& other = at_head(found, layer, head);
    EXPECT_EQ(*other.toggle->routing_mediated(), 0);
    EXPECT_TRUE(other.flipped_gates.empty());
  }
  // What if it were on?
  const HeadEffects& off = at_head(found, 1, 1);
  EXPECT_FALSE(off.on());
  EXPECT_NEAR(off.toggle->frozen, b, 1e-12);
  EXPECT_NEAR(*off.gate_gradient, b, 1e-12);
  EXPECT_EQ(off.toggle->ablation, "zero");
  EXPECT_NEAR(*off.write_norm, 1, 1e-12);
}

TEST(MeasureEffectsTest, GatesThatReadTheInputMediateNothing) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  LinearGateSettings settings;
  settings.weight = at::randn({3, 4, 5}, at::kDouble);
  settings.reference = at::zeros({5}, at::kDouble);
  settings.static_logits = at::randn({3, 4}, at::kDouble);
  const LinearGate gate(settings);
  const Batch batch = testing::random_toy_batch(kLayout, 3, 5, 3, 2);
  const auto all = measure_effects(*model, batch, *make_output_metric("class_margin"),
                                   {.ablation = "zero", .policy = &gate});
  const at::Tensor decided =
      gate.open_heads(gate.logits(batch.at("x"), batch.at("attention_mask")));
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].routing, "by_construction");
    for (const HeadEffects& head : all[i].heads) {
      EXPECT_EQ(*head.toggle->routing_mediated(), 0);
      EXPECT_EQ(head.gate,
                decided[static_cast<int64_t>(i)][head.head.layer][head.head.head].item<double>());
    }
  }
}

// A random model and gates of which some are closed.
struct RandomCase {
  std::shared_ptr<testing::ToyModel> model = testing::random_toy_model(kLayout, 3, 1);
  Batch batch = testing::random_toy_batch(kLayout, 4, 6, 3, 2);
  at::Tensor heads = at::ones({4, 3, 4}, at::kDouble);
  std::shared_ptr<OutputMetric> metric = make_output_metric("class_margin");

  RandomCase() {
    for (const auto& [b, l, h] : {std::tuple{0, 0, 1}, {1, 2, 3}, {1, 0, 0}, {3, 1, 2}}) {
      heads[b][l][h] = 0;
    }
  }
  GateSet gates() const {
    GateSet set;
    set.heads = heads;
    return set;
  }
  // m of every example under gates, of what the gates above predict with the weights as they were.
  at::Tensor value(const at::Tensor& changed, const at::Tensor& dropped = {}) {
    GateSet set;
    set.heads = changed;
    set.dropped_output = dropped;
    return metric->values((*model)(batch, set), target());
  }
  const MetricTarget& target() {
    if (!chosen.target.defined()) chosen = metric->choose((*model)(batch, gates()), {}, {}, {});
    return chosen;
  }
  MetricTarget chosen;
};

TEST(MeasureEffectsTest, GateGradientsAreCentralDifferences) {
  RandomCase all;
  const auto found = measure_effects(*all.model, all.batch, *all.metric,
                                     {.ablation = "zero", .gates = all.gates(), .toggles = false});
  const double step = 1e-5;
  for (int64_t l = 0; l < 3; ++l) {
    for (int64_t h = 0; h < 4; ++h) {
      at::Tensor more = all.heads.clone(), less = all.heads.clone();
      more.select(1, l).select(1, h).add_(step);
      less.select(1, l).select(1, h).sub_(step);
      const at::Tensor slope = (all.value(more) - all.value(less)) / (2 * step);
      for (int64_t b = 0; b < 4; ++b) {
        EXPECT_NEAR(*at_head(found[static_cast<size_t>(b)], l, h).gate_gradient,
                    slope[b].item<double>(), 1e-8);
        EXPECT_FALSE(at_head(found[static_cast<size_t>(b)], l, h).toggle);
      }
    }
  }
}

TEST(MeasureEffectsTest, AToggleEqualsTheZeroedSliceOfTheOutputProjection) {
  RandomCase all;
  const auto found = measure_effects(*all.model, all.batch, *all.metric,
                                     {.ablation = "zero", .gates = all.gates()});
  const MetricTarget& target = all.target();
  const at::Tensor base = all.value(all.heads);
  for (int64_t l = 0; l < 3; ++l) {
    for (int64_t h = 0; h < 4; ++h) {
      at::Tensor opened = all.heads.clone();
      opened.select(1, l).select(1, h).fill_(1);
      const at::Tensor with = all.value(opened);
      at::Tensor slice = all.model->attention(l).o.slice(1, h * 2, h * 2 + 2);
      const at::Tensor kept = slice.clone();
      slice.zero_();
      const at::Tensor without = all.value(all.heads);
      slice.copy_(kept);
      for (int64_t b = 0; b < 4; ++b) {
        const HeadEffects& head = at_head(found[static_cast<size_t>(b)], l, h);
        EXPECT_NEAR(head.toggle->frozen, (with[b] - without[b]).item<double>(), 1e-12);
        EXPECT_EQ(head.on(), all.heads[b][l][h].item<double>() == 1);
        EXPECT_FALSE(head.toggle->lower);
        EXPECT_FALSE(head.toggle->redecided);
      }
    }
  }
  for (int64_t b = 0; b < 4; ++b) {
    EXPECT_NEAR(found[static_cast<size_t>(b)].value, base[b].item<double>(), 1e-12);
    EXPECT_EQ(*found[static_cast<size_t>(b)].target, target.target[b].item<int64_t>());
    EXPECT_EQ(*found[static_cast<size_t>(b)].distractor, target.distractor[b].item<int64_t>());
  }
}

TEST(MeasureEffectsTest, PathsAddUp) {
  RandomCase all;
  const auto found = measure_effects(
      *all.model, all.batch, *all.metric,
      {.ablation = "zero", .gates = all.gates(), .toggles = false, .path_nodes = 16});
  const at::Tensor without = all.value(at::zeros_like(all.heads));
  for (int64_t b = 0; b < 4; ++b) {
    const InputEffects& each = found[static_cast<size_t>(b)];
    EXPECT_NEAR(*each.value_without_heads, without[b].item<double>(), 1e-12);
    EXPECT_LT(std::abs(*each.path_gap), 1e-3);
    double sum = 0;
    for (const HeadEffects& head : each.heads) {
      EXPECT_EQ(head.integrated_gate_gradient.has_value(), head.on());
      sum += head.integrated_gate_gradient.value_or(0);
    }
    EXPECT_NEAR(sum, each.value - *each.value_without_heads - *each.path_gap, 1e-12);
  }
}

TEST(MeasureEffectsTest, MeanAndResampleStandInForHeads) {
  RandomCase all;
  const BatchList reference({testing::random_toy_batch(kLayout, 5, 6, 3, 7)});
  const at::Tensor mean = mean_head_outputs(*all.model, reference);
  const auto found = measure_effects(
      *all.model, all.batch, *all.metric,
      {.ablation = "mean", .reference = &reference, .gates = all.gates(), .pair_heads = 2});
  for (int64_t b = 0; b < 4; ++b) {
    const InputEffects& each = found[static_cast<size_t>(b)];
    const at::Tensor open = all.heads[b].unsqueeze(2);
    for (const HeadEffects& head : each.heads) {
      at::Tensor changed = all.heads.clone();
      changed[b][head.head.layer][head.head.head] = head.on() ? 0 : 1;
      const double value = all.value(changed, mean * open)[b].item<double>();
      EXPECT_NEAR(head.toggle->frozen, head.on() ? each.value - value : value - each.value, 1e-12);
      EXPECT_EQ(head.toggle->ablation, head.on() ? "mean" : "zero");
    }
    EXPECT_EQ(each.pairs.front().ablation, "mean");
  }

  const auto drawn = measure_effects(
      *all.model, all.batch, *all.metric,
      {.ablation = "resample", .reference = &reference, .draws = 5, .gates = all.gates()});
  const HeadEffects& head = at_head(drawn[2], 1, 1);
  std::vector<double> effects;
  const Batch source = testing::random_toy_batch(kLayout, 5, 6, 3, 7);
  for (int64_t i = 0; i < 5; ++i) {
    const BatchList one({select_examples(source, at::full({1}, i, at::kLong))});
    at::Tensor changed = all.heads.clone();
    changed[2][1][1] = 0;
    effects.push_back(drawn[2].value -
                      all.value(changed, mean_head_outputs(*all.model, one))[2].item<double>());
  }
  EXPECT_NEAR(head.toggle->frozen, at::tensor(effects, at::kDouble).mean().item<double>(), 1e-12);
  EXPECT_LE(*head.toggle->lower, head.toggle->frozen);
  EXPECT_GE(*head.toggle->upper, head.toggle->frozen);
  EXPECT_EQ(drawn[2].ablation, "resample");
}

TEST(MeasureEffectsTest, ClosedHeadsKeepWhatTheyAdd) {
  RandomCase all;
  GateSet gates = all.gates();
  gates.dropped_output = at::randn({3, 4, 5}, at::kDouble);
  const auto found =
      measure_effects(*all.model, all.batch, *all.metric, {.ablation = "zero", .gates = gates});
  const MetricTarget target = all.metric->choose((*all.model)(all.batch, gates), {}, {}, {});
  for (int64_t b = 0; b < 4; ++b) {
    for (const HeadEffects& head : found[static_cast<size_t>(b)].heads) {
      GateSet changed = gates;
      changed.heads = all.heads.clone();
      changed.heads[b][head.head.layer][head.head.head] = head.on() ? 0 : 1;
      changed.dropped_output = gates.dropped_output * (1 - all.heads[b]).unsqueeze(2);
      const double value =
          all.metric->values((*all.model)(all.batch, changed), target)[b].item<double>();
      const double base = found[static_cast<size_t>(b)].value;
      EXPECT_NEAR(head.toggle->frozen, head.on() ? base - value : value - base, 1e-12);
      EXPECT_EQ(head.toggle->ablation, head.on() ? "zero" : "compensation");
    }
  }
}

TEST(MeasureEffectsTest, NeighboursDoNotShowAndNothingChanges) {
  RandomCase all;
  Batch kept;
  for (const auto& [name, value] : all.batch) kept[name] = value.clone();
  std::vector<at::Tensor> weights;
  for (const auto& [name, value] : all.model->parameters()) weights.push_back(value.clone());
  const at::Tensor heads = all.heads.clone();
  const EffectOptions options{
      .ablation = "zero", .gates = all.gates(), .path_nodes = 4, .pair_heads = 3, .game_heads = 3};
  const auto together = measure_effects(*all.model, all.batch, *all.metric, options);
  for (int64_t b = 0; b < 4; ++b) {
    EffectOptions one = options;
    one.gates = options.gates.select_samples(at::full({1}, b, at::kLong));
    InputEffects alone = measure_effects(
        *all.model, select_examples(all.batch, at::full({1}, b, at::kLong)), *all.metric, one)[0];
    alone.input = b;
    EXPECT_EQ(alone, together[static_cast<size_t>(b)]);
  }
  for (const auto& [name, value] : all.batch) EXPECT_TRUE(at::equal(value, kept.at(name)));
  size_t next = 0;
  for (const auto& [name, value] : all.model->parameters()) {
    EXPECT_TRUE(at::equal(value, weights[next++]));
    EXPECT_FALSE(value.grad().defined());
  }
  EXPECT_TRUE(at::equal(all.heads, heads));
}

TEST(MeasureEffectsTest, MeansOverInputsHaveIntervals) {
  RandomCase all;
  const auto found = measure_effects(*all.model, all.batch, *all.metric, {.ablation = "zero"});
  const InputEffects mean = mean_effects(found);
  EXPECT_EQ(mean.input, 4);
  for (size_t h = 0; h < mean.heads.size(); ++h) {
    std::vector<double> toggles, gradients;
    for (const InputEffects& each : found) {
      toggles.push_back(each.heads[h].toggle->frozen);
      gradients.push_back(*each.heads[h].gate_gradient);
    }
    const BootstrapInterval expected = bootstrap_mean(
        at::tensor(toggles, at::kDouble), BootstrapUnit::kExamples, {.resamples = 1000});
    EXPECT_NEAR(mean.heads[h].toggle->frozen, expected.mean, 1e-12);
    EXPECT_NEAR(*mean.heads[h].toggle->lower, expected.lower, 1e-12);
    EXPECT_NEAR(*mean.heads[h].toggle->upper, expected.upper, 1e-12);
    EXPECT_NEAR(*mean.heads[h].gate_gradient,
                at::tensor(gradients, at::kDouble).mean().item<double>(), 1e-12);
  }
  std::vector<InputEffects> mixed = found;
  mixed[1].metric = "logit";
  EXPECT_THROW(mean_effects(mixed), std::invalid_argument);
  EXPECT_THROW(mean_effects({}), std::invalid_argument);
}

TEST(MeasureEffectsTest, CosineToDenseHasNoSlopeAtTheDenseModel) {
  RandomCase all;
  const auto metric = make_output_metric("cosine_to_dense");
  const auto dense = measure_effects(*all.model, all.batch, *metric, {.ablation = "zero"});
  EXPECT_NEAR(dense[0].value, 1, 1e-12);
  EXPECT_FALSE(dense[0].heads[0].gate_gradient);
  EXPECT_EQ(dense[0].not_computed[0].quantity, "gate_gradient");
  EXPECT_EQ(dense[0].not_computed[1].quantity, "direct");
  EXPECT_GT(dense[0].heads[0].toggle->frozen, 0);
  const auto gated =
      measure_effects(*all.model, all.batch, *metric, {.ablation = "zero", .gates = all.gates()});
  EXPECT_LT(gated[0].value, 1);
  EXPECT_TRUE(gated[0].heads[0].gate_gradient);
}

TEST(MeasureEffectsTest, WhatDoesNotFitIsRefused) {
  RandomCase all;
  const auto measure = [&](const EffectOptions& options) {
    return measure_effects(*all.model, all.batch, *all.metric, options);
  };
  EXPECT_THROW(measure({}), std::invalid_argument);  // the ablation is not named
  EXPECT_THROW(measure({.ablation = "median"}), std::invalid_argument);
  EXPECT_THROW(measure({.ablation = "mean"}), std::invalid_argument);
  EXPECT_THROW(measure({.ablation = "zero", .toggles = false, .pair_heads = 3}),
               std::invalid_argument);
  EXPECT_THROW(measure({.ablation = "zero", .game_heads = 13, .interaction = "sii"}),
               std::invalid_argument);
  EXPECT_THROW(measure({.ablation = "zero", .choice = {.target = at::zeros({3}, at::kLong)}}),
               std::invalid_argument);
  GateSet gates = all.gates();
  gates.heads = at::ones({2, 4}, at::kDouble);
  EXPECT_THROW(measure({.ablation = "zero", .gates = gates}), std::invalid_argument);
  gates.heads = at::full({3, 4}, 0.5, at::kDouble);
  EXPECT_NO_THROW(measure({.ablation = "zero", .gates = gates, .toggles = false}));
  gates.dropped_output = at::ones({3, 4, 5}, at::kDouble);
  EXPECT_THROW(measure({.ablation = "zero", .gates = gates}), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
