#include "headkit/pruners/kwon.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "headkit/core/flops.h"
#include "headkit/pruners/removal.h"
#include "headkit/scorers/fisher.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

using nlohmann::json;

const HeadLayout kLayout{.layers = 2, .heads = 3, .head_dim = 2, .model_dim = 5, .feed_forward = 4};

struct Problem {
  std::shared_ptr<testing::ToyModel> model = testing::random_toy_model(kLayout, 3, 1);
  Batch batch = testing::random_toy_batch(kLayout, 9, 6, 3, 2);
  BatchList data{{select_examples(batch, at::arange(4)), select_examples(batch, at::arange(4, 9))}};
  double tokens = batch.at("attention_mask").sum().item<double>() / 9;
};

at::Tensor open(const at::Tensor& gates) { return gates.ne(0).to(at::kDouble); }

TEST(KwonTest, TheMaskIsTheBestWithinTheBudget) {
  Problem p;
  const FisherInformation fisher = fisher_information(*p.model, p.data, *cross_entropy());
  const UnitCosts costs = unit_macs(kLayout, p.tokens);
  const at::Tensor all = at::arange(1 << 14)
                             .unsqueeze(1)
                             .bitwise_right_shift(at::arange(14))
                             .remainder(2)
                             .to(at::kDouble);
  const at::Tensor values = at::cat({fisher.heads.flatten(), fisher.neurons.flatten()});
  const at::Tensor cost = at::mv(all, at::cat({at::full({6}, costs.head, at::kDouble),
                                               at::full({8}, costs.neuron, at::kDouble)}));
  for (const double keep : {0.05, 0.3, 0.5, 0.77, 1.0}) {
    const StaticPruning found = prune_kwon(*p.model, p.data, *cross_entropy(),
                                           {.keep = keep, .rearrange = false, .tune = false});
    const double budget = keep * costs.total(6, 8);
    const double best =
        at::mv(all, values).masked_select(cost.le(budget + 1e-9)).max().item<double>();
    const at::Tensor heads = found.heads.keep().to(at::kDouble), neurons = found.gates.neurons;
    EXPECT_NEAR((heads * fisher.heads + 0).sum().item<double>() +
                    (neurons * fisher.neurons).sum().item<double>(),
                best, 1e-12)
        << keep;
    const double spent = costs.total(heads.sum().item<double>(), neurons.sum().item<double>());
    const auto details = json::parse(found.details);
    EXPECT_LE(spent, budget + 1e-9);
    EXPECT_NEAR(details["cost"], spent, 1e-9);
    EXPECT_NEAR(details["budget"], budget, 1e-9);
    EXPECT_NEAR(details["tokens"], p.tokens, 1e-12);
  }
}

TEST(KwonTest, RearrangementKeepsCountsAndLowersTheBlockObjective) {
  Problem p;
  const FisherInformation fisher =
      fisher_information(*p.model, p.data, *cross_entropy(), {.keep_gradients = true});
  const auto increase = [&](const StaticPruning& found) {
    const at::Tensor heads = 1 - found.heads.keep().to(at::kDouble);
    const at::Tensor neurons = 1 - open(found.gates.neurons);
    return at::einsum("nlh,lh->nl", {fisher.head_gradients, heads}).square().sum() +
           at::einsum("nlf,lf->nl", {fisher.neuron_gradients.to(at::kDouble), neurons})
               .square()
               .sum();
  };
  for (const double keep : {0.3, 0.5, 0.7}) {
    const auto run = [&](bool rearrange) {
      return prune_kwon(*p.model, p.data, *cross_entropy(),
                        {.keep = keep, .rearrange = rearrange, .tune = false});
    };
    const StaticPruning plain = run(false), swapped = run(true);
    EXPECT_TRUE(at::equal(plain.heads.keep().sum(1), swapped.heads.keep().sum(1)));
    EXPECT_TRUE(at::equal(plain.gates.neurons.sum(1), swapped.gates.neurons.sum(1)));
    EXPECT_LE(increase(swapped).item<double>(), increase(plain).item<double>() + 1e-6);
  }
}

TEST(KwonTest, TuningComesCloserToTheDenseModelAndRemovalEqualsTheGates) {
  Problem p;
  const auto run = [&](bool tune, bool compensate) {
    return prune_kwon(*p.model, p.data, *cross_entropy(),
                      {.keep = 0.5, .tune = tune, .ridge = 0.01, .compensate = compensate});
  };
  // Layer 0 sees the same inputs in both models.
  const auto first_layer_error = [&](const StaticPruning& found) {
    const auto block = [&](const GateSet& gates) {
      Taps taps;
      taps.attention_outputs = true;
      p.model->run(p.model->embed(p.batch), 0, 1, gates, &taps);
      return taps.attention_output[0];
    };
    const at::Tensor apart = block(found.all_gates()) - block({});
    return apart.masked_select(p.batch.at("attention_mask").unsqueeze(2)).square().sum();
  };
  for (const bool compensate : {false, true}) {
    const StaticPruning plain = run(false, compensate), tuned = run(true, compensate);
    EXPECT_EQ(plain.heads, tuned.heads);
    EXPECT_TRUE(at::equal(open(plain.gates.neurons), open(tuned.gates.neurons)));
    EXPECT_LE(first_layer_error(tuned).item<double>(), first_layer_error(plain).item<double>());
    const at::Tensor expected = (*p.model)(p.batch, tuned.all_gates());
    Problem fresh;
    apply_pruning(*fresh.model, tuned);
    EXPECT_TRUE(at::allclose((*fresh.model)(p.batch), expected, 1e-10, 1e-12));
    EXPECT_EQ(fresh.model->heads(), tuned.heads);
    EXPECT_EQ(fresh.model->neurons().sum().item<int64_t>(),
              json::parse(tuned.details)["neurons"].get<int64_t>());
  }
}

TEST(KwonTest, NothingRemovedTunesNothing) {
  Problem p;
  const StaticPruning found =
      prune_kwon(*p.model, p.data, *cross_entropy(), {.keep = 1, .ridge = 0});
  EXPECT_TRUE(at::allclose(found.gates.heads, at::ones({2, 3}, at::kDouble), 0, 1e-8));
  EXPECT_TRUE(at::allclose(found.gates.neurons, at::ones({2, 4}, at::kDouble), 0, 1e-8));
}

// The two heads of layer 0 are the same.
std::shared_ptr<testing::ToyModel> with_twins(const HeadLayout& layout) {
  const auto model = testing::random_toy_model(layout, 3, 4);
  AttentionWeights w = model->attention(0);
  for (at::Tensor* rows : {&w.q, &w.k, &w.v, &w.q_bias, &w.k_bias, &w.v_bias}) {
    rows->narrow(0, 2, 2).copy_(rows->narrow(0, 0, 2));
  }
  w.o.narrow(1, 2, 2).copy_(w.o.narrow(1, 0, 2));
  return model;
}

TEST(KwonTest, TheTwinOfAHeadThatGoesTakesOver) {
  const HeadLayout layout{.layers = 1, .heads = 2, .head_dim = 2, .model_dim = 5};
  const auto model = with_twins(layout);
  const Batch batch = testing::random_toy_batch(layout, 9, 6, 3, 2);
  const at::Tensor dense = (*model)(batch);
  const StaticPruning found =
      prune_kwon(*model, BatchList({batch}), *cross_entropy(), {.keep = 0.5, .ridge = 0});
  EXPECT_NEAR(found.gates.heads.sum().item<double>(), 2, 1e-8);
  apply_pruning(*model, found);
  EXPECT_EQ(model->heads().count(), 1);
  EXPECT_TRUE(at::allclose((*model)(batch), dense, 0, 1e-8));
}

TEST(KwonTest, ALayerThatCannotBeTunedKeepsOneAndTheNextIsTuned) {
  const HeadLayout layout{.layers = 2, .heads = 2, .head_dim = 2, .model_dim = 5};
  const auto model = with_twins(layout);
  model->attention(0).o.mul_(0.05);
  const Batch batch = testing::random_toy_batch(layout, 9, 6, 3, 2);
  PruneOptions options;
  options.share.keep = 0.75;
  options.settings = R"({"ridge": 0, "largest_scale": 1.5})";
  const StaticPruning found = prune(*model, BatchList({batch}), *cross_entropy(), "kwon", options);
  EXPECT_EQ(json::parse(found.details)["rejected"],
            json::parse(R"([{"layer": 0, "block": "attention"}])"));
  EXPECT_EQ(found.gates.heads[0].sum().item<double>(), 1);
  EXPECT_GT((found.gates.heads[1] - 1).abs().max().item<double>(), 1e-6);
}

TEST(KwonTest, LatencyTablesAreTheBudgetWhereGiven) {
  Problem p;
  const std::vector<double> heads{2.0, 2.1, 3.0}, neurons{1.0, 1.9};
  const std::vector<double> each_neuron{1.0, 1.0, 1.45, 1.9};  // between entries it is linear
  for (const double keep : {0.15, 0.4, 0.6, 0.9, 1.0}) {
    const StaticPruning found = prune_kwon(*p.model, p.data, *cross_entropy(),
                                           {.keep = keep,
                                            .head_latency = heads,
                                            .neuron_latency = neurons,
                                            .other_latency = 0.5,
                                            .tune = false});
    double spent = 0.5;
    for (int64_t layer = 0; layer < 2; ++layer) {
      const auto n = found.gates.neurons[layer].sum().item<int64_t>();
      const auto h = static_cast<int64_t>(found.heads.layer_heads(layer).size());
      if (h > 0) spent += heads[h - 1];
      if (n > 0) spent += each_neuron[n - 1];
    }
    EXPECT_NEAR(json::parse(found.details)["cost"], spent, 1e-12);
    EXPECT_NEAR(json::parse(found.details)["dense"], 0.5 + 2 * (3 + 1.9), 1e-12);
    EXPECT_LE(spent, keep * 10.3 + 1e-9) << keep;
  }
}

TEST(KwonTest, RefusesWhatCannotBe) {
  Problem p;
  const auto message = [&](KwonOptions options) -> std::string {
    try {
      prune_kwon(*p.model, p.data, *cross_entropy(), options);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message({.keep = 0.1, .neurons = false}).find("heads can reach, keep of at least"),
            std::string::npos);
  EXPECT_NE(message({.keep = 1.1}), "");
  EXPECT_NE(message({.head_latency = {1, 2}}), "");
  EXPECT_NE(message({.head_latency = {1, 2, 3}}), "");
  EXPECT_NE(message({.neuron_latency = {1, 2}}), "");
  EXPECT_NE(message({.ridge = -1}), "");
  EXPECT_EQ(message({.keep = 0.9, .neurons = false, .tune = false}), "");
  // Without heads or neurons costs are those of the original model.
  remove_heads(*p.model, HeadMask(at::tensor({1, 0, 0, 1, 1, 0}).reshape({2, 3})));
  const StaticPruning found = prune_kwon(*p.model, p.data, *cross_entropy(), {.keep = 1});
  EXPECT_EQ(found.heads, p.model->heads());
}

}  // namespace
}  // namespace headkit
