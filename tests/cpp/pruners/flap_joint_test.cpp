#include "headkit/pruners/flap_joint.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "headkit/core/flops.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

using nlohmann::json;

const HeadLayout kLayout{.layers = 2, .heads = 3, .head_dim = 2, .model_dim = 5, .feed_forward = 7};

struct Problem {
  std::shared_ptr<testing::ToyModel> model = testing::random_toy_model(kLayout, 3, 1);
  Batch batch = testing::random_toy_batch(kLayout, 9, 6, 3, 2);
  BatchList data{{select_examples(batch, at::arange(4)), select_examples(batch, at::arange(4, 9))}};
  double tokens = batch.at("attention_mask").sum().item<double>() / 9;
};

// Rows of valid tokens of the dense model, [tokens, channels].
std::pair<std::vector<at::Tensor>, std::vector<at::Tensor>> dense_rows(Problem& p) {
  Taps taps;
  taps.head_contexts = taps.neuron_activations = true;
  (*p.model)(p.batch, {}, &taps);
  const at::Tensor valid = p.batch.at("attention_mask");
  std::vector<at::Tensor> heads, neurons;
  for (int64_t l = 0; l < kLayout.layers; ++l) {
    heads.push_back(taps.head_context[l].flatten(2).index({valid}));
    neurons.push_back(taps.neurons[l].index({valid}));
  }
  return {heads, neurons};
}

at::Tensor z_scores(const at::Tensor& rows, const at::Tensor& weight, bool square) {
  at::Tensor score = rows.var(0, /*unbiased=*/false) * weight.square().sum(0);
  if (square) score = score.square();
  return (score - score.mean()) / score.std();
}

struct Unit {
  double score;
  int64_t place;  // heads of all layers, then neurons
};

// As An et al. 2024 order units, from the definition.
std::vector<Unit> best_first(Problem& p, bool square) {
  const auto [heads, neurons] = dense_rows(p);
  std::vector<Unit> units;
  const auto add = [&](const at::Tensor& scores) {
    for (int64_t i = 0; i < scores.numel(); ++i) {
      units.push_back({scores[i].item<double>(), static_cast<int64_t>(units.size())});
    }
  };
  for (int64_t l = 0; l < kLayout.layers; ++l) {
    add(z_scores(heads[l], p.model->attention(l).o, square).reshape({3, 2}).mean(1));
  }
  for (int64_t l = 0; l < kLayout.layers; ++l) {
    add(z_scores(neurons[l], p.model->feed_forward(l).out, false));
  }
  std::stable_sort(units.begin(), units.end(),
                   [](const Unit& a, const Unit& b) { return a.score > b.score; });
  return units;
}

TEST(FlapJointTest, TheBestUnitsOfAllLayersStayAsLongAsTheyFit) {
  Problem p;
  for (const bool square : {false, true}) {
    const std::vector<Unit> units = best_first(p, square);
    for (const char* kind : {"parameters", "macs"}) {
      const UnitCosts costs =
          std::string(kind) == "macs" ? unit_macs(kLayout, p.tokens) : unit_parameters(kLayout);
      const double dense = costs.total(6, 14);
      for (const double keep : {0.0, 0.03, 0.1, 0.25, 0.4, 0.5, 0.66, 0.8, 0.95, 1.0}) {
        at::Tensor expected = at::zeros({20}, at::kBool);
        double spent = 0;
        for (const Unit& unit : units) {
          spent += unit.place < 6 ? costs.head : costs.neuron;
          if (spent > keep * dense * (1 + 1e-12)) break;
          expected[unit.place] = true;
        }
        const StaticPruning found = prune_flap_jointly(
            *p.model, p.data, *cross_entropy(), {.keep = keep, .cost = kind, .square = square});
        const at::Tensor kept =
            at::cat({found.heads.keep().flatten(), found.gates.neurons.flatten().ne(0)});
        EXPECT_TRUE(at::equal(kept, expected)) << kind << " " << keep;
        const json details = json::parse(found.details);
        EXPECT_LE(details["cost"].get<double>(), keep * dense + 1e-9);
        EXPECT_NEAR(details["dense"].get<double>(), dense, 1e-9);
        EXPECT_EQ(details["unit"], std::string(kind) == "macs" ? "MACs" : "parameters");
      }
    }
  }
}

TEST(FlapJointTest, MeansOfTheDenseModelReplaceWhatGoes) {
  Problem p;
  const StaticPruning found = prune_flap_jointly(*p.model, p.data, *cross_entropy(), {.keep = 0.5});
  const auto [heads, neurons] = dense_rows(p);
  at::Tensor bias[2][2];
  for (int64_t l = 0; l < kLayout.layers; ++l) {
    EXPECT_TRUE(at::allclose(found.dropped_neurons[l], neurons[l].mean(0), 1e-10, 1e-12));
    const at::Tensor closed_channels =
        1 - found.heads.keep()[l].to(at::kDouble).repeat_interleave(2);
    bias[l][0] = p.model->attention(l).o_bias +
                 at::mv(p.model->attention(l).o, heads[l].mean(0) * closed_channels);
    bias[l][1] =
        p.model->feed_forward(l).out_bias +
        at::mv(p.model->feed_forward(l).out, neurons[l].mean(0) * (1 - found.gates.neurons[l]));
  }
  Problem by_gates;
  for (int64_t l = 0; l < kLayout.layers; ++l) {
    FeedForwardWeights weights = by_gates.model->feed_forward(l);
    weights.out_bias = bias[l][1];
    by_gates.model->replace_feed_forward(l, weights, {0, 1, 2, 3, 4, 5, 6});
  }
  const at::Tensor expected = (*by_gates.model)(p.batch, found.all_gates());
  apply_pruning(*p.model, found);
  for (int64_t l = 0; l < kLayout.layers; ++l) {
    EXPECT_TRUE(at::allclose(p.model->attention(l).o_bias, bias[l][0], 1e-10, 1e-12));
    EXPECT_TRUE(at::allclose(p.model->feed_forward(l).out_bias, bias[l][1], 1e-10, 1e-12));
  }
  EXPECT_TRUE(at::allclose((*p.model)(p.batch), expected, 1e-10, 1e-12));
  apply_pruning(*p.model, found);  // what is gone adds nothing more
  EXPECT_TRUE(at::allclose((*p.model)(p.batch), expected, 1e-10, 1e-12));
}

TEST(FlapJointTest, MeansOfThePrunedModelOrNoneOnRequest) {
  Problem p;
  PruneOptions options;
  options.share.keep = 0.5;
  options.compensate = true;
  const StaticPruning pruned = prune(*p.model, p.data, *cross_entropy(), "flap_joint", options);
  EXPECT_EQ(json::parse(pruned.details)["means"], "pruned");
  GateSet bare;
  bare.heads = pruned.heads.keep().to(at::kDouble);
  bare.neurons = pruned.gates.neurons;
  Taps taps;
  taps.neuron_activations = true;
  (*p.model)(p.batch, bare, &taps);
  const at::Tensor valid = p.batch.at("attention_mask");
  for (int64_t l = 0; l < kLayout.layers; ++l) {
    EXPECT_TRUE(at::allclose(pruned.dropped_neurons[l], taps.neurons[l].index({valid}).mean(0),
                             1e-10, 1e-12));
  }
  options.compensate = false;
  options.settings = R"({"means": "none"})";
  const StaticPruning none = prune(*p.model, p.data, *cross_entropy(), "flap_joint", options);
  EXPECT_EQ(none.heads, pruned.heads);
  EXPECT_FALSE(none.gates.dropped_output.defined() || none.dropped_neurons.defined());
}

TEST(FlapJointTest, WithoutNeuronsHeadsAloneCarryTheBudget) {
  Problem p;
  const UnitCosts costs = unit_parameters(kLayout);
  const double feed_forward = 14 * costs.neuron;
  const double keep = (feed_forward + 2.5 * costs.head) / costs.total(6, 14);
  const StaticPruning found =
      prune_flap_jointly(*p.model, p.data, *cross_entropy(), {.keep = keep, .neurons = false});
  EXPECT_EQ(found.heads.count(), 2);
  EXPECT_FALSE(found.gates.neurons.defined());
  EXPECT_THROW(
      prune_flap_jointly(*p.model, p.data, *cross_entropy(),
                         {.keep = 0.9 * feed_forward / costs.total(6, 14), .neurons = false}),
      std::invalid_argument);
}

TEST(FlapJointTest, RefusesWhatCannotBe) {
  Problem p;
  const auto refused = [&](FlapJointOptions options) {
    EXPECT_THROW(prune_flap_jointly(*p.model, p.data, *cross_entropy(), options),
                 std::invalid_argument);
  };
  refused({.keep = 1.1});
  refused({.cost = "seconds"});
  refused({.means = "median"});
  FeedForwardWeights weights = p.model->feed_forward(1);
  weights.out_bias = at::Tensor();
  p.model->replace_feed_forward(1, weights, {0, 1, 2, 3, 4, 5, 6});
  refused({});
  EXPECT_NO_THROW(prune_flap_jointly(*p.model, p.data, *cross_entropy(), {.means = "none"}));
}

}  // namespace
}  // namespace headkit
