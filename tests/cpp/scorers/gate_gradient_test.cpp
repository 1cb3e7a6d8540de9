#include "headkit/scorers/gate_gradient.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <nlohmann/json.hpp>

#include "headkit/pruners/removal.h"
#include "support/golden.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 2, .model_dim = 5};

HeadScores score(GatedModel& model, const std::vector<Batch>& batches, ScoreOptions options = {}) {
  return GateGradientScorer().score(model, BatchList(batches), *cross_entropy(), options);
}

std::vector<Batch> split(const Batch& batch, std::vector<int64_t> sizes) {
  std::vector<Batch> pieces;
  int64_t first = 0;
  for (int64_t size : sizes) {
    pieces.push_back(select_examples(batch, at::arange(first, first + size)));
    first += size;
  }
  return pieces;
}

bool close(const at::Tensor& a, const at::Tensor& b, double tolerance = 1e-12) {
  return at::allclose(a, b, tolerance, tolerance);
}

TEST(GateGradientTest, GoldenGranularities) {
  const auto& golden = testing::golden_case("toy.gate_gradient");
  const auto model = testing::golden_toy_model();
  const Batch batch = testing::golden_toy_batch();
  const auto check = [&](const char* key, const std::vector<Batch>& batches,
                         const ScoreOptions& options) {
    testing::expect_golden(score(*model, batches, options).values, golden, key);
  };
  check("signed", {batch}, {.granularity = "signed"});
  check("token", {batch}, {.granularity = "token"});
  check("example", {batch}, {});
  check("batch_of_3", {batch}, {.granularity = "batch"});
  check("batch_2_1", split(batch, {2, 1}), {.granularity = "batch"});
  check("token_michel_denominator", {batch}, {.granularity = "token", .denominator = "tokens"});
  check("example_l2_per_layer", {batch}, {.normalization = "layer_l2"});
  check("token_l2_per_layer", {batch}, {.granularity = "token", .normalization = "layer_l2"});
  std::vector<at::Tensor> per_example;
  for (const Batch& one : split(batch, {1, 1, 1})) {
    per_example.push_back(score(*model, {one}, {.granularity = "signed"}).values);
  }
  testing::expect_golden(at::stack(per_example), golden, "grad_per_example");
}

TEST(GateGradientTest, EqualsInnerProductsWithWeightGradients) {
  const auto& golden = testing::golden_case("toy.weight_identities");
  const auto model = testing::golden_toy_model();
  const Batch batch = testing::golden_toy_batch();
  testing::expect_golden(3 * score(*model, {batch}, {.granularity = "signed"}).values, golden,
                         "gate_gradient_sum");

  std::vector<at::Tensor> by_output, by_value, by_query, by_key;
  for (int64_t layer = 0; layer < 2; ++layer) {
    const AttentionWeights w = model->attention(layer);
    const std::vector<at::Tensor> inputs{w.o, w.v, w.v_bias, w.q, w.q_bias, w.k, w.k_bias};
    for (at::Tensor input : inputs) input.set_requires_grad(true);
    const at::Tensor loss = cross_entropy()->loss((*model)(batch), batch, {}).sum();
    const auto g = torch::autograd::grad({loss}, {inputs.begin(), inputs.end()});
    const auto rows = [](const at::Tensor& a, const at::Tensor& b) {
      return (a.detach() * b).reshape({3, -1}).sum(1);
    };
    by_output.push_back((w.o.detach() * g[0]).sum(0).reshape({3, 2}).sum(1));
    by_value.push_back(rows(w.v, g[1]) + rows(w.v_bias, g[2]));
    by_query.push_back(rows(w.q, g[3]) + rows(w.q_bias, g[4]));
    by_key.push_back(rows(w.k, g[5]) + rows(w.k_bias, g[6]));
    EXPECT_LE(g[6].abs().max().item<double>(), 1e-9);
    for (at::Tensor input : inputs) input.set_requires_grad(false);
  }
  testing::expect_golden(at::stack(by_output), golden, "value_or_output_inner_product");
  testing::expect_golden(at::stack(by_value), golden, "value_or_output_inner_product");
  testing::expect_golden(at::stack(by_query), golden, "query_or_key_inner_product");
  testing::expect_golden(at::stack(by_key), golden, "query_or_key_inner_product");
}

TEST(GateGradientTest, EqualsCentralDifferences) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 5, 6, 3, 2);
  for (const auto& objective : {cross_entropy(), margin()}) {
    const HeadScores scores = GateGradientScorer().score(*model, BatchList({batch}), *objective,
                                                         {.granularity = "signed"});
    const auto mean_loss = [&](int64_t layer, int64_t head, double gate) {
      GateSet gates;
      gates.heads = at::ones({3, 4}, at::kDouble);
      gates.heads[layer][head] = gate;
      return objective->loss((*model)(batch, gates), batch, {}).mean().item<double>();
    };
    constexpr double kStep = 1e-5;
    for (int64_t layer = 0; layer < 3; ++layer) {
      for (int64_t head = 0; head < 4; ++head) {
        const double slope =
            (mean_loss(layer, head, 1 + kStep) - mean_loss(layer, head, 1 - kStep)) / (2 * kStep);
        EXPECT_NEAR(scores.values[layer][head].item<double>(), slope, 1e-6);
      }
    }
  }
}

TEST(GateGradientTest, FinerGranularityNeverLowersAScore) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 9, 6, 3, 2);
  const auto values = [&](const char* granularity) {
    return score(*model, split(batch, {4, 4, 1}), {.granularity = granularity}).values;
  };
  const at::Tensor by_signed = values("signed").abs(), by_batch = values("batch"),
                   by_example = values("example"), by_token = values("token");
  EXPECT_TRUE(by_signed.le(by_batch + 1e-12).all().item<bool>());
  EXPECT_TRUE(by_batch.le(by_example + 1e-12).all().item<bool>());
  EXPECT_TRUE(by_example.le(by_token + 1e-12).all().item<bool>());
  EXPECT_FALSE(close(by_batch, by_example, 1e-3));
  EXPECT_FALSE(close(by_example, by_token, 1e-3));
  const std::vector<Batch> singles = split(batch, std::vector<int64_t>(9, 1));
  EXPECT_TRUE(close(score(*model, singles, {.granularity = "batch"}).values, by_example));
}

TEST(GateGradientTest, BatchSizeOrderPaddingAndThreadsDoNotShow) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch all = testing::random_toy_batch(kLayout, 14, 6, 3, 2);
  for (const char* granularity : {"example", "token", "signed"}) {
    for (const char* denominator : {"examples", "tokens"}) {
      const ScoreOptions options{.granularity = granularity, .denominator = denominator};
      const HeadScores expected = score(*model, {all}, options);
      for (const auto& sizes : {std::vector<int64_t>(14, 1), {7, 7}, {7, 6, 1}, {3, 11}}) {
        const HeadScores found = score(*model, split(all, sizes), options);
        EXPECT_TRUE(close(found.values, expected.values));
        EXPECT_TRUE(close(found.lower, expected.lower));
        EXPECT_TRUE(close(found.upper, expected.upper));
        EXPECT_EQ(found.samples, 14);
      }
      std::vector<Batch> reversed = split(all, {3, 5, 6});
      std::swap(reversed[0], reversed[2]);
      EXPECT_TRUE(close(score(*model, reversed, options).values, expected.values));

      Batch padded = all;
      padded["x"] = at::constant_pad_nd(all.at("x"), {0, 0, 0, 5}, 2.5);
      padded["attention_mask"] = at::constant_pad_nd(all.at("attention_mask"), {0, 5}, false);
      EXPECT_TRUE(close(score(*model, {padded}, options).values, expected.values));
    }
  }
  const int threads = at::get_num_threads();
  const at::Tensor expected = score(*model, {all}).values;
  at::set_num_threads(threads > 1 ? 1 : 3);
  EXPECT_TRUE(close(score(*model, {all}).values, expected));
  at::set_num_threads(threads);
}

TEST(GateGradientTest, PlantedHeads) {
  const auto make = [](const std::function<void(AttentionWeights&)>& change) {
    const auto model = testing::random_toy_model(kLayout, 3, 1);
    AttentionWeights w = model->attention(1);
    for (at::Tensor* t : {&w.q, &w.k, &w.v, &w.o, &w.q_bias, &w.k_bias, &w.v_bias}) *t = t->clone();
    change(w);
    model->replace_attention(1, w, {0, 1, 2, 3});
    return model;
  };
  const Batch batch = testing::random_toy_batch(kLayout, 9, 6, 3, 2);
  const at::Tensor dense = score(*make([](auto&) {}), {batch}).values;

  // Head 2 writes nothing, head 3 is head 0 again.
  const auto silent = make([](AttentionWeights& w) {
    w.o.slice(1, 4, 6).zero_();
    w.v.slice(0, 2, 4).zero_();
    w.v_bias.slice(0, 2, 4).zero_();
  });
  const HeadScores scores = score(*silent, {batch});
  EXPECT_EQ(scores.values[1][2].item<double>(), 0);
  EXPECT_EQ(scores.values[1][1].item<double>(), 0);
  EXPECT_GT(scores.values[1][0].item<double>(), 0);

  const auto twins = make([](AttentionWeights& w) {
    for (at::Tensor* t : {&w.q, &w.k, &w.v, &w.q_bias, &w.k_bias, &w.v_bias}) {
      t->slice(0, 6, 8).copy_(t->slice(0, 0, 2));
    }
    w.o.slice(1, 6, 8).copy_(w.o.slice(1, 0, 2));
  });
  const at::Tensor alike = score(*twins, {batch}).values;
  EXPECT_NEAR(alike[1][0].item<double>(), alike[1][3].item<double>(), 1e-14);

  const std::vector<int64_t> order{2, 0, 3, 1};
  const auto permuted = make([&](AttentionWeights& w) {
    std::vector<int64_t> rows;
    for (int64_t head : order) rows.insert(rows.end(), {2 * head, 2 * head + 1});
    const at::Tensor index = at::tensor(rows, at::kLong);
    for (at::Tensor* t : {&w.q, &w.k, &w.v, &w.q_bias, &w.k_bias, &w.v_bias}) {
      *t = t->index_select(0, index);
    }
    w.o = w.o.index_select(1, index);
  });
  at::Tensor expected = dense.clone();
  expected[1] = dense[1].index_select(0, at::tensor(order, at::kLong));
  EXPECT_TRUE(close(score(*permuted, {batch}).values, expected));
}

TEST(GateGradientTest, NoParameterGradientExistsAfterwards) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  for (const auto& [name, tensor] : model->parameters()) at::Tensor(tensor).set_requires_grad(true);
  const std::string before = model->fingerprint();
  score(*model, {testing::random_toy_batch(kLayout, 5, 6, 3, 2)});
  for (const auto& [name, tensor] : model->parameters()) {
    EXPECT_FALSE(tensor.grad().defined()) << name;
    EXPECT_TRUE(tensor.requires_grad()) << name;
  }
  EXPECT_EQ(model->fingerprint(), before);
}

TEST(GateGradientTest, RemovedHeadsScoreZeroAndTheRestKeepTheirIndices) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 5, 6, 3, 2);
  at::Tensor keep = at::ones({3, 4}, at::kBool);
  keep[0][1] = false;
  keep[2] = false;
  const HeadMask mask(keep);
  GateSet closed;
  closed.heads = mask.keep().to(at::kDouble).set_requires_grad(true);
  const at::Tensor loss = cross_entropy()->loss((*model)(batch, closed), batch, {}).mean();
  const at::Tensor expected = torch::autograd::grad({loss}, {closed.heads})[0];
  remove_heads(*model, mask);
  const at::Tensor found = score(*model, {batch}, {.granularity = "signed"}).values;
  EXPECT_TRUE(close(found, expected * mask.keep().to(at::kDouble)));
}

TEST(GateGradientTest, ObjectivesWithTheirMinimumAtTheDenseModelAreRefused) {
  const auto model = testing::golden_toy_model();
  for (const auto& objective : {kl_to_dense(), cosine_to_dense()}) {
    try {
      GateGradientScorer().score(*model, BatchList({testing::golden_toy_batch()}), *objective, {});
      FAIL() << objective->name();
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find("minimum"), std::string::npos) << error.what();
    }
  }
}

// Reads gates through a head that forgets them: the hooks-off-the-loss-path trap.
class DeafModel final : public GatedModel {
 public:
  enum Kind { kDetached, kConstant, kNan };
  explicit DeafModel(Kind kind) : kind_(kind) {}
  HeadLayout layout() const override { return kLayout; }
  HeadMask heads() const override { return HeadMask::all(3, 4); }
  ModelState embed(const Batch& batch) override {
    ModelState state;
    state.hidden = batch.at("x");
    state.batch = batch;
    return state;
  }
  ModelState run(const ModelState& state, int64_t, int64_t last, const GateSet& gates,
                 Taps*) override {
    ModelState next = state;
    next.layer = last;
    const double factor = kind_ == kNan ? NAN : 0.0;
    if (kind_ != kDetached) next.hidden = next.hidden + gates.heads.sum() * factor;
    return next;
  }
  at::Tensor head(const ModelState& state) override { return state.hidden.mean(1); }
  AttentionWeights attention(int64_t) override { return {}; }
  void replace_attention(int64_t, const AttentionWeights&, const std::vector<int64_t>&) override {}
  std::vector<std::pair<std::string, at::Tensor>> parameters() override { return {}; }

 private:
  Kind kind_;
};

TEST(GateGradientTest, GatesThatDoNotReachTheLossAreAnError) {
  const Batch batch = testing::random_toy_batch(kLayout, 5, 6, 3, 2);
  for (const auto kind : {DeafModel::kDetached, DeafModel::kConstant, DeafModel::kNan}) {
    DeafModel model(kind);
    EXPECT_THROW(score(model, {batch}), std::runtime_error);
  }
}

TEST(GateGradientTest, RefusesUnknownSettingsAndEmptyData) {
  const auto model = testing::golden_toy_model();
  const Batch batch = testing::golden_toy_batch();
  EXPECT_THROW(score(*model, {batch}, {.granularity = "layer"}), std::invalid_argument);
  EXPECT_THROW(score(*model, {batch}, {.normalization = "l1"}), std::invalid_argument);
  EXPECT_THROW(score(*model, {batch}, {.denominator = "batches"}), std::invalid_argument);
  EXPECT_THROW(score(*model, {batch}, {.confidence = 1.0}), std::invalid_argument);
  EXPECT_THROW(score(*model, {batch}, {.bootstrap = -1}), std::invalid_argument);
  EXPECT_THROW(score(*model, {}), std::invalid_argument);
  EXPECT_THROW(score(*model, {select_examples(batch, at::zeros({0}, at::kLong))}),
               std::invalid_argument);
}

TEST(GateGradientTest, AnInterruptionLeavesNothingBehind) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  for (const auto& [name, tensor] : model->parameters()) at::Tensor(tensor).set_requires_grad(true);
  const std::string before = model->fingerprint();
  const Batch batch = testing::random_toy_batch(kLayout, 6, 6, 3, 2);
  struct Stop {};
  std::vector<int64_t> seen;
  ScoreOptions options;
  options.progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, 3);
    seen.push_back(done);
    if (done == 2) throw Stop{};
  };
  EXPECT_THROW(score(*model, split(batch, {2, 2, 2}), options), Stop);
  EXPECT_EQ(seen, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(model->fingerprint(), before);
  for (const auto& [name, tensor] : model->parameters()) EXPECT_FALSE(tensor.grad().defined());
}

TEST(GateGradientTest, TheResultSaysHowItCameAbout) {
  const auto model = testing::golden_toy_model();
  const HeadScores scores =
      score(*model, split(testing::golden_toy_batch(), {2, 1}),
            {.granularity = "batch", .normalization = "layer_l2", .bootstrap = 50, .seed = 9});
  EXPECT_EQ(scores.metric, "gate_gradient");
  EXPECT_EQ(scores.objective, "cross_entropy");
  EXPECT_EQ(scores.samples, 3);
  EXPECT_EQ(scores.seed, 9u);
  const auto settings = nlohmann::json::parse(scores.settings);
  EXPECT_EQ(settings["granularity"], "batch");
  EXPECT_EQ(settings["batch_size"], 2);
  EXPECT_EQ(settings["tokens"], 9);
  EXPECT_EQ(settings["normalization"], "layer_l2");
  EXPECT_NO_THROW(scores.check("test"));
  EXPECT_TRUE(at::equal(HeadScores::from_json(scores.to_json()).values, scores.values));
}

// Two heads with the scalar outputs 1 and 2 and the loss 0.5 (g . a - y)^2.
class ScalarHeads final : public GatedModel {
 public:
  HeadLayout layout() const override { return {1, 2, 1, 1, 0}; }
  HeadMask heads() const override { return HeadMask::all(1, 2); }
  ModelState embed(const Batch& batch) override {
    ModelState state;
    state.hidden = at::ones({batch_size(batch), 1, 1}, at::kDouble);
    state.batch = batch;
    return state;
  }
  ModelState run(const ModelState& state, int64_t, int64_t, const GateSet& gates, Taps*) override {
    ModelState next = state;
    const at::Tensor outputs = at::tensor({1.0, 2.0}, at::kDouble);
    next.hidden = (gates.heads.select(1, 0) * outputs).sum(1).reshape({-1, 1, 1});
    next.layer = 1;
    return next;
  }
  at::Tensor head(const ModelState& state) override { return state.hidden.reshape({-1}); }
  AttentionWeights attention(int64_t) override { return {}; }
  void replace_attention(int64_t, const AttentionWeights&, const std::vector<int64_t>&) override {}
  std::vector<std::pair<std::string, at::Tensor>> parameters() override { return {}; }
};

class SquaredError final : public Objective {
 public:
  std::string name() const override { return "squared_error"; }
  at::Tensor loss(const at::Tensor& output, const Batch& batch, const at::Tensor&) const override {
    return 0.5 * (output - batch.at("target")).square();
  }
};

TEST(GateGradientTest, TwoExamplesOfMichel) {
  const auto& golden = testing::golden_case("michel.two_examples");
  ScalarHeads model;
  const Batch both{{"target", at::tensor({4.0, 2.0}, at::kDouble)}};
  const std::vector<Batch> apart = split(both, {1, 1});
  const auto values = [&](const std::vector<Batch>& batches, ScoreOptions options) {
    return GateGradientScorer()
        .score(model, BatchList(batches), SquaredError(), options)
        .values.reshape({2});
  };
  testing::expect_golden(values({both}, {}), golden, "mean_abs");
  testing::expect_golden(values(apart, {}), golden, "mean_abs");
  testing::expect_golden(2 * values(apart, {}), golden, "per_example_sum");
  testing::expect_golden(values(apart, {.normalization = "layer_l2"}), golden, "mean_abs_l2");
  testing::expect_golden(values(apart, {.granularity = "batch"}), golden, "mean_abs");
  // The gradients of the two examples cancel, so that nothing is left of the batch.
  EXPECT_THROW(values({both}, {.granularity = "batch"}), std::runtime_error);
}

TEST(GateGradientTest, TheIntervalIsThatOfAMeanAndRepeatsWithItsSeed) {
  ScalarHeads model;
  const at::Tensor noise = at::randn({400}, at::kDouble);
  const std::vector<Batch> data{{{"target", 3 - 10 - noise}}};  // gradients (10 + noise) a
  const auto run = [&](ScoreOptions options) {
    return GateGradientScorer().score(model, BatchList(data), SquaredError(), options);
  };
  const HeadScores scores = run({.bootstrap = 4000, .seed = 1});
  const double expected = 1.96 * noise.std().item<double>() / 20;
  for (int64_t head = 0; head < 2; ++head) {
    const double center = scores.values[0][head].item<double>();
    const double width = expected * static_cast<double>(head + 1);
    EXPECT_NEAR(center - scores.lower[0][head].item<double>(), width, 0.15 * width);
    EXPECT_NEAR(scores.upper[0][head].item<double>() - center, width, 0.15 * width);
  }
  EXPECT_TRUE(at::equal(run({.bootstrap = 4000, .seed = 1}).lower, scores.lower));
  EXPECT_FALSE(at::equal(run({.bootstrap = 4000, .seed = 2}).lower, scores.lower));
  EXPECT_TRUE(run({.confidence = 0.5, .bootstrap = 4000, .seed = 1})
                  .lower.gt(scores.lower)
                  .all()
                  .item<bool>());
  EXPECT_FALSE(run({.bootstrap = 0}).lower.defined());
}

TEST(GateGradientTest, ScalingTheLossScalesTheScoreAndNotTheNormalisedOne) {
  class Scaled final : public Objective {
   public:
    std::string name() const override { return "scaled"; }
    at::Tensor loss(const at::Tensor& output, const Batch& batch,
                    const at::Tensor&) const override {
      return 7 * cross_entropy()->loss(output, batch, {});
    }
  };
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const std::vector<Batch> data{testing::random_toy_batch(kLayout, 5, 6, 3, 2)};
  const auto scaled = [&](ScoreOptions options) {
    return GateGradientScorer().score(*model, BatchList(data), Scaled(), options).values;
  };
  EXPECT_TRUE(close(scaled({}), 7 * score(*model, data).values));
  const ScoreOptions normalised{.normalization = "layer_l2"};
  EXPECT_TRUE(close(scaled(normalised), score(*model, data, normalised).values));
  EXPECT_TRUE(close(scaled(normalised).square().sum(1), at::ones({3}, at::kDouble)));
}

}  // namespace
}  // namespace headkit
