#include "headkit/models/gated_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <set>

#include "support/golden.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

using namespace headkit::testing;

TEST(GatedModelTest, ToyModelGivesTheGoldenLogits) {
  const auto model = golden_toy_model();
  const nlohmann::json& golden = golden_case("toy.model");
  const Batch batch = golden_toy_batch();
  expect_golden((*model)(batch), golden, "logits");
  expect_golden((*model)(batch, {.heads = at::ones({2, 3}, at::kDouble)}), golden, "logits");
}

TEST(GatedModelTest, GatesOfEachExampleAreItsOwn) {
  const nlohmann::json& golden = golden_case("toy.per_example_gates");
  const auto model = golden_toy_model();
  for (bool skip : {true, false}) {
    const GateSet gates{.heads = golden_tensor(golden["inputs"]["gates"]).to(at::kDouble),
                        .skip = skip};
    expect_golden((*model)(golden_toy_batch(), gates), golden, "logits");
  }
}

TEST(GatedModelTest, StagesComposeToTheWhole) {
  const HeadLayout layout{3, 5, 4, 14, 0};
  const auto model = random_toy_model(layout, 3, 1);
  const Batch batch = random_toy_batch(layout, 4, 6, 3, 2);
  const GateSet gates{.heads = at::rand({4, 3, 5}, at::kDouble)};
  const at::Tensor whole = (*model)(batch, gates);

  Taps taps{.attention_inputs = true};
  ModelState state = model->embed(batch);
  for (int64_t l = 0; l < 3; ++l) state = model->run(state, l, l + 1, gates, &taps);
  EXPECT_TRUE(model->head(state).equal(whole));
  ASSERT_EQ(taps.attention_input.size(), 3u);
  EXPECT_TRUE(taps.attention_input[0].equal(batch.at("x")));

  const at::Tensor index = at::tensor({3, 1}, at::kLong);
  const ModelState middle = model->run(model->embed(batch), 0, 1, gates);
  const ModelState part = model->select(middle, index);
  EXPECT_EQ(part.layer, 1);
  EXPECT_TRUE(part.batch.at("labels").equal(batch.at("labels").index_select(0, index)));
  const at::Tensor finished = model->head(model->run(part, 1, 3, gates.select_samples(index)));
  EXPECT_TRUE(at::allclose(finished, whole.index_select(0, index), 1e-12, 1e-12));
}

TEST(GatedModelTest, TapsShowWhatHeadsMakeOfTheirInput) {
  const HeadLayout layout{2, 6, 4, 14, 0, 3};
  const auto model = random_toy_model(layout, 3, 1);
  const Batch batch = random_toy_batch(layout, 4, 6, 3, 2);
  const GateSet gates{.heads = at::rand({4, 2, 6}, at::kDouble)};
  Taps taps{.attention_inputs = true, .head_contexts = true};
  const ModelState last = model->run(model->embed(batch), 0, 2, gates, &taps);
  ASSERT_EQ(taps.head_context.size(), 2u);
  ASSERT_EQ(taps.valid.size(), 2u);
  EXPECT_TRUE(taps.valid[1].equal(batch.at("attention_mask")));
  const AttentionWeights w = model->attention(1);
  const at::Tensor gated =
      taps.head_context[1] * gates.heads.select(1, 1).unsqueeze(1).unsqueeze(3);
  EXPECT_TRUE(at::allclose(taps.attention_input[1] + at::linear(gated.flatten(2), w.o, w.o_bias),
                           last.hidden));
  Taps none;
  model->run(model->embed(batch), 0, 2, gates, &none);
  EXPECT_TRUE(none.head_context.empty() && none.valid.empty());
}

const HeadLayout kFeedForward{2, 3, 4, 10, 7};

// What the layers add, one by one, from the weights that the model shows.
TEST(GatedModelTest, GatesOfNeuronsAndBlocksAreFactors) {
  const auto model = random_toy_model(kFeedForward, 3, 1);
  const Batch batch = random_toy_batch(kFeedForward, 4, 6, 3, 2);
  GateSet gates{.heads = at::rand({4, 2, 3}, at::kDouble)};
  gates.neurons = at::rand({4, 2, 7}, at::kDouble);
  gates.attention_sublayers = at::rand({4, 2}, at::kDouble);
  gates.feed_forward_sublayers = at::rand({2}, at::kDouble);
  Taps taps{.attention_inputs = true,
            .head_contexts = true,
            .attention_outputs = true,
            .feed_forward_inputs = true,
            .neuron_activations = true,
            .feed_forward_outputs = true};
  const ModelState last = model->run(model->embed(batch), 0, 2, gates, &taps);
  const AttentionWeights a = model->attention(1);
  const FeedForwardWeights f = model->feed_forward(1);
  const at::Tensor heads = taps.head_context[1] * gates.heads.select(1, 1).view({4, 1, 3, 1});
  const at::Tensor attended = at::linear(heads.flatten(2), a.o, a.o_bias) *
                              gates.attention_sublayers.select(1, 1).view({4, 1, 1});
  const at::Tensor between = taps.attention_input[1] + attended;
  const at::Tensor neurons = at::gelu(at::linear(between, f.in, f.in_bias));
  const at::Tensor fed =
      at::linear(neurons * gates.neurons.select(1, 1).unsqueeze(1), f.out, f.out_bias) *
      gates.feed_forward_sublayers[1];
  EXPECT_TRUE(at::allclose(taps.attention_output[1], attended));
  EXPECT_TRUE(at::allclose(taps.feed_forward_input[1], between));
  EXPECT_TRUE(at::allclose(taps.neurons[1], neurons));
  EXPECT_TRUE(at::allclose(taps.feed_forward_output[1], fed));
  EXPECT_TRUE(at::allclose(last.hidden, between + fed));

  const at::Tensor index = at::tensor({3, 1}, at::kLong);
  const at::Tensor whole = (*model)(batch, gates);
  EXPECT_TRUE(at::allclose((*model)(select_examples(batch, index), gates.select_samples(index)),
                           whole.index_select(0, index), 1e-12, 1e-12));
}

// The golden feed-forward layer behind a closed attention block.
TEST(GatedModelTest, GoldenGatesOfNeurons) {
  const nlohmann::json& golden = golden_case("ffn.neuron_gates");
  const auto& in = golden["inputs"];
  FeedForwardWeights weights;
  weights.in = golden_tensor(in["W1"]);
  weights.out = golden_tensor(in["W2"]);
  weights.in_bias = golden_tensor(in["b1"]);
  weights.out_bias = golden_tensor(in["b2"]);
  const HeadLayout layout{1, 1, 2, 3, 4};
  const auto attention = random_toy_model(layout, 2, 1)->attention(0);
  ToyModel model(layout, {attention}, at::zeros({2, 3}, at::kDouble), at::zeros({2}, at::kDouble),
                 {weights});
  const Batch batch{{"x", golden_tensor(in["x"])}};
  const auto output = [&](const at::Tensor& neurons) {
    GateSet gates;
    gates.attention_sublayers = at::zeros({1}, at::kDouble);
    gates.neurons = neurons;
    Taps taps{.feed_forward_outputs = true};
    model.run(model.embed(batch), 0, 1, gates, &taps);
    return taps.feed_forward_output.at(0);
  };
  const at::Tensor ones = at::ones({2, 1, 4}, at::kDouble).requires_grad_();
  const at::Tensor y = output(ones);
  expect_golden(y.detach(), golden, "output");
  (y * y).sum().mul(0.5).backward();
  expect_golden(ones.grad().squeeze(1), golden, "grad_per_example");
  expect_golden(ones.grad().squeeze(1).square().mean(0), golden, "fisher_diagonal");
  expect_golden(output(at::tensor({1.0, 0.0, 1.0, 0.0}, at::kDouble).reshape({1, 4})), golden,
                "output_removed");
}

TEST(GatedModelTest, GatesOfUnitsThatAModelHasNotAreRefused) {
  const auto plain = golden_toy_model();
  const auto model = random_toy_model(kFeedForward, 3, 1);
  GateSet neurons, blocks, hidden, attention;
  neurons.neurons = at::ones({2, 7}, at::kDouble);
  blocks.feed_forward_sublayers = at::ones({2}, at::kDouble);
  attention.attention_sublayers = at::ones({3}, at::kDouble);
  hidden.hidden = at::ones({10}, at::kDouble);
  model->check("test", 4, neurons);
  model->check("test", 4, blocks);
  for (const GateSet& gates : {neurons, blocks, hidden, attention}) {
    EXPECT_THROW((*plain)(golden_toy_batch(), gates), std::invalid_argument);
  }
  EXPECT_THROW(model->check("test", 4, hidden), std::invalid_argument);
  EXPECT_THROW(model->check("test", 4, attention), std::invalid_argument);
  neurons.neurons = at::ones({3, 2, 7}, at::kDouble);
  EXPECT_THROW(model->check("test", 4, neurons), std::invalid_argument);
  neurons.neurons = at::full({2, 7}, NAN, at::kDouble);
  EXPECT_THROW(model->check("test", 4, neurons), std::invalid_argument);
  EXPECT_THROW(plain->neurons(), std::invalid_argument);
  EXPECT_THROW(plain->GatedModel::feed_forward(0), std::invalid_argument);
  EXPECT_THROW(plain->GatedModel::set_sublayers({}), std::invalid_argument);
}

TEST(GatedModelTest, RefusesGatesThatDoNotFit) {
  const auto model = golden_toy_model();
  const Batch batch = golden_toy_batch();
  const auto run = [&](const at::Tensor& heads) { (*model)(batch, {.heads = heads}); };
  EXPECT_THROW(run(at::ones({3, 2}, at::kDouble)), std::invalid_argument);
  EXPECT_THROW(run(at::ones({2, 2, 3}, at::kDouble)), std::invalid_argument);
  EXPECT_THROW(run(at::ones({3}, at::kDouble)), std::invalid_argument);
  EXPECT_THROW(run(at::full({2, 3}, NAN, at::kDouble)), std::invalid_argument);
}

struct StateExtra : ModelState::Extra {};

TEST(GatedModelTest, SelectRefusesAnExtraThatItWouldLose) {
  const auto model = golden_toy_model();
  ModelState state = model->embed(golden_toy_batch());
  state.extra = std::make_shared<StateExtra>();
  EXPECT_THROW(model->select(state, at::tensor({0}, at::kLong)), std::invalid_argument);
}

class Fingerprinted : public GatedModel {
 public:
  std::vector<std::pair<std::string, at::Tensor>> all;
  HeadLayout layout() const override { return {}; }
  HeadMask heads() const override { return {}; }
  ModelState embed(const Batch&) override { return {}; }
  ModelState run(const ModelState& s, int64_t, int64_t, const GateSet&, Taps*) override {
    return s;
  }
  at::Tensor head(const ModelState&) override { return {}; }
  AttentionWeights attention(int64_t) override { return {}; }
  void replace_attention(int64_t, const AttentionWeights&, const std::vector<int64_t>&) override {}
  std::vector<std::pair<std::string, at::Tensor>> parameters() override { return all; }
};

TEST(GatedModelTest, FingerprintSeesNamesDtypesShapesAndBytes) {
  const auto fingerprint = [](std::vector<std::pair<std::string, at::Tensor>> all) {
    Fingerprinted model;
    model.all = std::move(all);
    return model.fingerprint();
  };
  const at::Tensor a = at::arange(6, at::kFloat);
  const std::string base = fingerprint({{"a", a}, {"b", at::ones({2})}});
  EXPECT_EQ(base.size(), 64u);
  EXPECT_EQ(base, fingerprint({{"a", a.clone()}, {"b", at::ones({2})}}));
  EXPECT_EQ(base, fingerprint({{"a", at::stack({a, a}, 1).select(1, 0)}, {"b", at::ones({2})}}))
      << "strides are not part of the value";

  at::Tensor changed = a.clone();
  changed[3] = 3.0000005f;
  const std::set<std::string> different = {
      base,
      fingerprint({{"a", changed}, {"b", at::ones({2})}}),
      fingerprint({{"a", a.reshape({2, 3})}, {"b", at::ones({2})}}),
      fingerprint({{"a", a.view(at::kInt)}, {"b", at::ones({2})}}),
      fingerprint({{"c", a}, {"b", at::ones({2})}}),
      fingerprint({{"b", at::ones({2})}, {"a", a}}),
      fingerprint({{"a", a}}),
      fingerprint({}),
  };
  EXPECT_EQ(different.size(), 8u);
}

}  // namespace
}  // namespace headkit
