#include "headkit/pruners/hybrid_pruner.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "headkit/gates/run_policy.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

constexpr int64_t kHeads = 4, kClassDims = 2;

struct Planted {
  std::shared_ptr<testing::ToyModel> model;
  Batch batch;
};

// Each head of `useful` layers carries one feature of its own to the two class dimensions.
// Sequences of one token: attention copies. For ladders three examples in ten have features and
// nothing else, so that they need every such head; the others say their class at once, with zero
// features, and need none. `by_layer`, for gates, which split their heads: half of the examples
// have the features of each layer, and show in both class dimensions alike which.
Planted planted(const std::vector<int64_t>& useful, int64_t examples, uint64_t seed,
                bool by_layer = false) {
  const int64_t layers = 2, dims = kClassDims + layers * kHeads;
  const HeadLayout layout{layers, kHeads, 1, dims, 0};
  const auto options = at::TensorOptions(at::kDouble);
  std::vector<AttentionWeights> weights;
  for (int64_t l = 0; l < layers; ++l) {
    AttentionWeights own;
    own.q = at::zeros({kHeads, dims}, options);
    own.k = at::zeros({kHeads, dims}, options);
    own.v = at::zeros({kHeads, dims}, options);
    own.o = at::zeros({dims, kHeads}, options);
    own.q_bias = at::zeros({kHeads}, options);
    own.k_bias = at::zeros({kHeads}, options);
    own.v_bias = at::zeros({kHeads}, options);
    own.o_bias = at::zeros({dims}, options);
    const bool carries = std::find(useful.begin(), useful.end(), l) != useful.end();
    for (int64_t h = 0; h < kHeads; ++h) {
      if (carries) own.v[h][kClassDims + l * kHeads + h] = 1;
      own.o[0][h] = 0.75;
      own.o[1][h] = -0.75;
    }
    weights.push_back(own);
  }
  Planted made;
  made.model = std::make_shared<testing::ToyModel>(
      layout, weights, at::eye(kClassDims, dims, options), at::zeros({kClassDims}, options));
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const at::Tensor hard = at::rand({examples}, generator, options) < 0.3;
  at::Tensor x = at::randn({examples, 1, dims}, generator, options);
  const at::Tensor first = at::rand({examples}, generator, options) < 0.5;
  x.slice(2, 0, kClassDims).zero_();
  for (int64_t b = 0; b < examples; ++b) {
    if (by_layer) {
      const int64_t other = first[b].item<bool>() ? 1 : 0;
      x[b].slice(1, kClassDims + other * kHeads, kClassDims + (other + 1) * kHeads).zero_();
      x[b].slice(1, 0, kClassDims).fill_(other == 1 ? 1 : -1);
      continue;
    }
    if (hard[b].item<bool>()) continue;
    x[b].zero_();
    x[b][0][first[b].item<bool>() ? 0 : 1] = 5;
  }
  made.batch["x"] = x;
  made.batch["attention_mask"] = at::ones({examples, 1}, at::kBool);
  made.batch["labels"] = (*made.model)(made.batch).argmax(1);
  return made;
}

std::vector<at::Tensor> weights_of(GatedModel& model) {
  std::vector<at::Tensor> all;
  for (const auto& [name, value] : model.parameters()) all.push_back(value.detach().clone());
  return all;
}

bool same(const std::vector<at::Tensor>& before, GatedModel& model) {
  const std::vector<at::Tensor> now = weights_of(model);
  return std::equal(before.begin(), before.end(), now.begin(), now.end(),
                    [](const at::Tensor& a, const at::Tensor& b) { return at::equal(a, b); });
}

double mean_heads(GatedModel& model, const AdjustablePolicy& policy, const Batch& batch) {
  return run_policy(model, batch, policy).heads_run.to(at::kDouble).mean().item<double>();
}

struct Case {
  std::string mechanism;
  std::vector<int64_t> useful;
  double heads;
};

class HybridPrunerTest : public ::testing::TestWithParam<Case> {};

TEST_P(HybridPrunerTest, BeatsTheStaticSetWhereInputsNeedDifferentHeads) {
  const Case& given = GetParam();
  const bool gate = given.mechanism.ends_with("gate");
  const Planted train = planted(given.useful, 240, 1, gate);
  const Planted held_out = planted(given.useful, 200, 2, gate);
  const auto before = weights_of(*train.model);
  HybridSettings settings;
  settings.mechanism = given.mechanism;
  settings.budget.mean_heads = given.heads;
  const FittedHybrid fitted = fit_hybrid(*train.model, BatchList({train.batch}),
                                         BatchList({held_out.batch}), *cross_entropy(), settings);
  const HybridArm &policy = fitted.report.arm("policy"), &fixed = fitted.report.arm("static");
  EXPECT_LE(policy.heads, given.heads);
  EXPECT_GE(fixed.heads, policy.heads);
  EXPECT_LT(policy.distance, 0.5 * fixed.distance);
  EXPECT_GT(policy.agreement, fixed.agreement);
  EXPECT_DOUBLE_EQ(mean_heads(*train.model, *fitted.policy, held_out.batch), policy.heads);
  const HybridArm& dense = fitted.report.arm("dense");
  EXPECT_EQ(dense.heads, 8);
  EXPECT_EQ(dense.flops, 1);
  EXPECT_EQ(dense.agreement, 1);
  EXPECT_EQ(dense.quality, 1);
  EXPECT_NEAR(dense.distance, 0, 1e-12);
  EXPECT_TRUE(same(before, *train.model));
  // The same policy comes back, and its knob stands where the report says.
  const auto again = policy_from_json(fitted.policy->to_json());
  EXPECT_EQ(again->to_json(), fitted.policy->at(fitted.report.lambda)->to_json());
  // Fresh examples of the same kind cost about as much.
  const Planted fresh = planted(given.useful, 400, 3, gate);
  EXPECT_NEAR(mean_heads(*train.model, *fitted.policy, fresh.batch), policy.heads, 0.6);
}

INSTANTIATE_TEST_SUITE_P(Mechanisms, HybridPrunerTest,
                         ::testing::Values(Case{"escalation", {0, 1}, 5},
                                           Case{"reactivation", {1}, 3},
                                           Case{"linear_gate", {0, 1}, 4},
                                           Case{"layer_gate", {0, 1}, 5}),
                         [](const auto& info) { return info.param.mechanism; });

const HeadLayout kLayout{2, 4, 2, 6, 128};

TEST(HybridPruner, KeepsABudgetOfFlopsWithNeuronsOnTheRungs) {
  const auto model = testing::random_toy_model(kLayout, 3, 5);
  const Batch train = testing::random_toy_batch(kLayout, 60, 6, 3, 1);
  const Batch held_out = testing::random_toy_batch(kLayout, 50, 6, 3, 2);
  const at::Tensor output = (*model)(held_out);
  for (const std::string mechanism : {"escalation", "reactivation"}) {
    HybridSettings settings;
    settings.mechanism = mechanism;
    settings.budget.flops = 0.6;
    settings.order = "gate_gradient";
    const FittedHybrid fitted =
        fit_hybrid(*model, BatchList({train}), BatchList({held_out}), *cross_entropy(), settings);
    const PolicyRun run = run_policy(*model, held_out, *fitted.policy);
    const at::Tensor tokens = held_out.at("attention_mask").sum(1);
    double dense = 0;
    for (int64_t b = 0; b < 50; ++b) {
      const auto length = static_cast<double>(tokens[b].item<int64_t>());
      // By hand: 2 layers of 4 heads, and of 128 neurons.
      dense += 2 * (4 * length * 2 * 4 * (2 * 6 + length) + 4 * length * 6 * 128);
    }
    const double share = run_flops(kLayout, run, tokens).sum().item<double>() / dense;
    EXPECT_LE(share, 0.6) << mechanism;
    EXPECT_NEAR(share, fitted.report.arm("policy").flops, 1e-12);
    EXPECT_GE(fitted.report.arm("static").flops, share);
    EXPECT_NEAR(fitted.report.arm("policy").agreement,
                (run.output.argmax(1) == output.argmax(1)).to(at::kDouble).mean().item<double>(),
                1e-12);
    EXPECT_TRUE(at::allclose((*model)(held_out), output, 1e-10, 1e-12))
        << "neurons are sorted only";
    EXPECT_LT(run.neurons_run.min().item<int64_t>(), 256);
  }
}

// 0.125 ms a head, 0.25 ms a block of neurons, 1 ms beside them: a batch of 50 on paper.
std::shared_ptr<LatencyModel> paper_latency() {
  const nlohmann::json text{
      {"version", 1},
      {"key", "paper"},
      {"layout", {{"layers", 2}, {"heads", 4}, {"feed_forward", 128}}},
      {"tokens", {6}},
      {"batches", {50}},
      {"measured", 1},
      {"milliseconds",
       {{{"heads", {1.0, 1.125, 1.25, 1.375, 1.5}}, {"blocks", {0.5, 1.0, 1.5}}, {"other", 1.0}}}}};
  return std::make_shared<LatencyModel>(LatencyModel::from_json(text.dump(), "paper"));
}

TEST(HybridPruner, KeepsABudgetOfMilliseconds) {
  const auto model = testing::random_toy_model(kLayout, 3, 5);
  const Batch train = testing::random_toy_batch(kLayout, 60, 6, 3, 1);
  const Batch held_out = testing::random_toy_batch(kLayout, 50, 6, 3, 2);
  const auto latency = paper_latency();
  const double dense = latency->milliseconds(8, 8, 6, 50) / 50;
  for (const std::string mechanism : {"escalation", "linear_gate"}) {
    HybridSettings settings;
    settings.mechanism = mechanism;
    settings.budget.milliseconds = 0.9 * dense;
    settings.order = "gate_gradient";
    settings.latency = latency;
    const FittedHybrid fitted =
        fit_hybrid(*model, BatchList({train}), BatchList({held_out}), *cross_entropy(), settings);
    EXPECT_NEAR(fitted.report.arm("dense").milliseconds, dense, 1e-12);
    const HybridArm& policy = fitted.report.arm("policy");
    EXPECT_LE(policy.milliseconds, 0.9 * dense * (1 + 1e-9)) << mechanism;
    if (mechanism == "linear_gate") {
      EXPECT_NEAR(policy.milliseconds, (3 + 0.125 * policy.heads) / 50, 1e-12);
    }
  }
}

TEST(HybridPruner, HoldsOutEveryFourthExampleAndReports) {
  const Planted all = planted({0, 1}, 203, 4);
  std::vector<Batch> batches;
  for (int64_t first = 0; first < 203; first += 29) {
    batches.push_back(
        select_examples(all.batch, at::arange(first, std::min<int64_t>(first + 29, 203))));
  }
  HybridSettings settings;
  settings.budget.mean_heads = 5;
  settings.order = "gate_gradient";
  const FittedHybrid fitted =
      fit_hybrid(*all.model, BatchList(batches), *cross_entropy(), settings);
  EXPECT_EQ(fitted.report.held_out_examples, 50);
  EXPECT_EQ(fitted.report.fitted_examples, 153);
  const at::Tensor index = at::arange(3, 203, 4);
  EXPECT_NEAR(mean_heads(*all.model, *fitted.policy, select_examples(all.batch, index)),
              fitted.report.arm("policy").heads, 1e-12);
  const auto json = nlohmann::json::parse(fitted.report.to_json());
  EXPECT_EQ(json.at("budget").at("mean_heads"), 5);
  EXPECT_EQ(json.at("arms").size(), fitted.report.arms.size());
  EXPECT_TRUE(json.at("arms")[0].at("milliseconds").is_null());
  const std::vector<double>& grid = fitted.report.grid;
  EXPECT_TRUE(std::is_sorted(grid.begin(), grid.end()));
  EXPECT_EQ(grid.front(), 0);
  EXPECT_EQ(grid.back(), 1);
  EXPECT_TRUE(std::count(grid.begin(), grid.end(), fitted.report.lambda));
  EXPECT_THROW(fitted.report.arm("oracle"), std::out_of_range);
}

TEST(HybridPruner, TrainsTheRungsTogetherAndReportsTheDrift) {
  const auto model = testing::random_toy_model(kLayout, 3, 5);
  for (auto& [name, value] : model->parameters()) value.set_requires_grad(true);
  const Batch train = testing::random_toy_batch(kLayout, 60, 6, 3, 1);
  const Batch held_out = testing::random_toy_batch(kLayout, 50, 6, 3, 2);
  HybridSettings settings;
  settings.budget.flops = 0.7;
  settings.order = "gate_gradient";
  settings.train = 15;
  settings.learning_rate = 1e-3;
  const at::Tensor before = (*model)(held_out).detach();
  const FittedHybrid fitted =
      fit_hybrid(*model, BatchList({train}), BatchList({held_out}), *cross_entropy(), settings);
  const at::Tensor chance = before.softmax(1);
  const double drift = (chance * (chance.log() - (*model)(held_out).detach().log_softmax(1)))
                           .sum(1)
                           .mean()
                           .item<double>();
  EXPECT_GT(drift, 0);
  EXPECT_NEAR(fitted.report.arm("top rung").distance, drift, 1e-9);
  EXPECT_LE(fitted.report.arm("policy").flops, 0.7);
}

TEST(HybridPruner, LeavesTheModelAsItWasWhereItIsInterrupted) {
  struct Stop {};
  for (const int64_t train_steps : {0, 8}) {
    for (const int64_t last : {1, 6, 12, 25, 40}) {
      const auto model = testing::random_toy_model(kLayout, 3, 5);
      for (auto& [name, value] : model->parameters()) value.set_requires_grad(true);
      const auto before = weights_of(*model);
      int64_t calls = 0;
      HybridSettings settings;
      settings.budget.flops = 0.7;
      settings.order = "gate_gradient";
      settings.train = train_steps;
      settings.progress = [&](int64_t, int64_t) {
        if (++calls >= last) throw Stop();
      };
      const Batch batch = testing::random_toy_batch(kLayout, 40, 6, 3, 1);
      try {
        fit_hybrid(*model, BatchList({batch}), BatchList({batch}), *cross_entropy(), settings);
      } catch (const Stop&) {
        EXPECT_TRUE(same(before, *model)) << train_steps << " steps, call " << last;
      }
      EXPECT_GE(calls, last) << "the fit ended before it could be interrupted";
    }
  }
}

TEST(HybridPruner, RefusesWhatDoesNotFit) {
  const Planted made = planted({0, 1}, 40, 1);
  const BatchList data({made.batch});
  const auto before = weights_of(*made.model);
  const auto refused = [&](const HybridSettings& settings, const std::string& expected) {
    try {
      fit_hybrid(*made.model, data, data, *cross_entropy(), settings);
      FAIL() << expected;
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
    }
    EXPECT_TRUE(same(before, *made.model));
  };
  refused({}, "one budget");
  refused({.budget = {.mean_heads = 4, .flops = 0.5}}, "one budget");
  refused({.budget = {.mean_heads = 9}}, "at most 8");
  refused({.budget = {.flops = 1.5}}, "at most 1");
  refused({.mechanism = "magic", .budget = {.mean_heads = 4}}, "linear_gate");
  refused({.budget = {.mean_heads = 1}, .order = "gate_gradient"}, "at least 2 heads");
  refused({.budget = {.mean_heads = 4}, .order = "nonsense"}, "gate_gradient");
  refused({.budget = {.mean_heads = 4}, .neurons = "fisher"}, "feed-forward");
  refused({.mechanism = "linear_gate", .budget = {.mean_heads = 4}, .head_shares = {0.5}},
          "ladder only");
  refused({.mechanism = "reactivation", .budget = {.mean_heads = 4}, .layer = 2}, "below 2");
}

}  // namespace
}  // namespace headkit
