#include "headkit/pruners/removal.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "support/golden.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 2, .model_dim = 5};

HeadMask mask_of(std::vector<int64_t> keep, int64_t layers, int64_t heads) {
  return HeadMask(at::tensor(keep, at::kLong).reshape({layers, heads}));
}

HeadMask without(const HeadLayout& layout, const std::vector<HeadId>& heads) {
  at::Tensor keep = at::ones({layout.layers, layout.heads}, at::kBool);
  for (HeadId id : heads) keep[id.layer][id.head] = false;
  return HeadMask(keep);
}

GateSet gates_of(const HeadMask& mask) {
  GateSet gates;
  gates.heads = mask.keep().to(at::kDouble);
  return gates;
}

double max_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(RemovalTest, GoldenModel) {
  const auto& golden = testing::golden_case("toy.physical_removal");
  const auto model = testing::golden_toy_model();
  const AttentionWeights dense = model->attention(0);
  remove_heads(*model, mask_of({1, 0, 1, 0, 0, 0}, 2, 3));
  testing::expect_golden((*model)(testing::golden_toy_batch()), golden, "logits");
  const at::Tensor rows = testing::golden_tensor(golden["expected"]["rows_kept_layer0"]);
  EXPECT_TRUE(at::equal(model->attention(0).v, dense.v.index_select(0, rows)));
  EXPECT_TRUE(at::equal(model->attention(0).k_bias, dense.k_bias.index_select(0, rows)));
  EXPECT_TRUE(at::equal(model->attention(0).o, dense.o.index_select(1, rows)));
  EXPECT_EQ(model->attention(1).q.size(0), 0);
  remove_heads(*model, HeadMask(at::zeros({2, 3}, at::kBool)));
  testing::expect_golden((*model)(testing::golden_toy_batch()), golden, "logits_all_removed");
}

TEST(RemovalTest, EqualsClosedGatesForAnyMask) {
  const Batch batch = testing::random_toy_batch(kLayout, 6, 7, 3, 4);
  for (int64_t bits = 0; bits < 4096; bits += 37) {
    at::Tensor keep = at::zeros({12}, at::kBool);
    for (int64_t i = 0; i < 12; ++i) keep[i] = ((bits >> i) & 1) != 0;
    const HeadMask mask(keep.reshape({3, 4}));
    const auto model = testing::random_toy_model(kLayout, 3, 1);
    const at::Tensor masked = (*model)(batch, gates_of(mask));
    remove_heads(*model, mask);
    EXPECT_EQ(model->heads(), mask);
    EXPECT_LE(max_difference((*model)(batch), masked), 1e-12) << mask.to_json();
  }
}

TEST(RemovalTest, GateSpeaksOriginalIndicesAfterRemoval) {
  const Batch batch = testing::random_toy_batch(kLayout, 6, 7, 3, 4);
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const HeadMask first = without(kLayout, {{0, 1}, {1, 0}});
  const HeadMask second = without(kLayout, {{0, 2}, {2, 3}});
  const at::Tensor expected = (*model)(batch, gates_of(first.intersect(second)));
  remove_heads(*model, first);
  EXPECT_LE(max_difference((*model)(batch, gates_of(second)), expected), 1e-12);
}

TEST(RemovalTest, IndexBookkeepingOfTheGoldenCase) {
  const auto& golden = testing::golden_case("removal.index_bookkeeping");
  const HeadLayout layout{.layers = 1, .heads = 6, .head_dim = 2, .model_dim = 5};
  const auto model = testing::random_toy_model(layout, 3, 1);
  for (const auto& step : golden["inputs"]["steps"]) {
    std::vector<HeadId> heads;
    for (const auto& head : step) heads.push_back({0, head});
    remove_heads(*model, without(layout, heads));
  }
  const std::vector<int64_t> survivors = golden["expected"]["survivors"];
  EXPECT_EQ(model->heads().layer_heads(0), survivors);
  const std::string before = model->fingerprint();
  remove_heads(*model, without(layout, {{0, golden["inputs"]["repeated_request"][0]}}));
  EXPECT_EQ(model->heads().layer_heads(0), survivors);
  EXPECT_EQ(model->fingerprint(), before);
}

TEST(RemovalTest, OrderAndGroupingDoNotMatter) {
  const std::vector<HeadId> gone{{0, 3}, {2, 0}, {0, 0}, {1, 1}, {1, 2}};
  const auto at_once = testing::random_toy_model(kLayout, 3, 1);
  remove_heads(*at_once, without(kLayout, gone));
  const auto one_by_one = testing::random_toy_model(kLayout, 3, 1);
  for (HeadId id : gone) remove_heads(*one_by_one, without(kLayout, {id}));
  const auto backwards = testing::random_toy_model(kLayout, 3, 1);
  remove_heads(*backwards, without(kLayout, {gone[4], gone[3]}));
  remove_heads(*backwards, without(kLayout, {gone[2], gone[1], gone[0]}));
  EXPECT_EQ(one_by_one->fingerprint(), at_once->fingerprint());
  EXPECT_EQ(backwards->fingerprint(), at_once->fingerprint());
}

TEST(RemovalTest, CompensationEqualsDroppedOutputGates) {
  const Batch batch = testing::random_toy_batch(kLayout, 6, 7, 3, 4);
  const at::Tensor dropped = at::randn({3, 4, 5}, at::kDouble);
  const HeadMask mask = without(kLayout, {{0, 1}, {0, 2}, {2, 0}, {1, 0}, {1, 1}, {1, 2}, {1, 3}});
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  GateSet gates = gates_of(mask);
  gates.dropped_output = dropped;
  const at::Tensor expected = (*model)(batch, gates);
  remove_heads(*model, mask, dropped);
  EXPECT_LE(max_difference((*model)(batch), expected), 1e-12);
  const std::string before = model->fingerprint();
  remove_heads(*model, mask, dropped);  // heads that are gone are not compensated twice
  EXPECT_EQ(model->fingerprint(), before);
}

// Heads 0-2 read KV head 0, heads 3-5 KV head 1.
const HeadLayout kShared{.layers = 2, .heads = 6, .head_dim = 2, .model_dim = 5, .kv_heads = 2};

TEST(RemovalTest, AKvHeadGoesWithTheLastHeadThatReadsIt) {
  const auto model = testing::random_toy_model(kShared, 3, 1);
  const AttentionWeights dense = model->attention(0);
  remove_heads(*model, without(kShared, {{0, 0}, {0, 3}, {0, 4}, {1, 0}, {1, 1}, {1, 2}}));
  EXPECT_TRUE(at::equal(model->attention(0).k, dense.k));
  EXPECT_EQ(model->attention(0).q.size(0), 6);
  EXPECT_EQ(model->attention(1).v.size(0), 2);
  remove_heads(*model, without(kShared, {{0, 5}}));
  EXPECT_TRUE(at::equal(model->attention(0).k, dense.k.slice(0, 0, 2)));
  EXPECT_TRUE(at::equal(model->attention(0).v_bias, dense.v_bias.slice(0, 0, 2)));
  EXPECT_TRUE(at::equal(model->attention(0).q, dense.q.slice(0, 2, 6)));
  remove_heads(*model, without(kShared, {{0, 1}, {0, 2}}));
  EXPECT_EQ(model->attention(0).k.size(0), 0);
}

TEST(RemovalTest, EqualsClosedGatesForAnyMaskOfSharedKvHeads) {
  const Batch batch = testing::random_toy_batch(kShared, 6, 7, 3, 4);
  for (int64_t bits = 0; bits < 4096; bits += 61) {
    at::Tensor keep = at::zeros({12}, at::kBool);
    for (int64_t i = 0; i < 12; ++i) keep[i] = ((bits >> i) & 1) != 0;
    const HeadMask mask(keep.reshape({2, 6}));
    const auto model = testing::random_toy_model(kShared, 3, 1);
    const at::Tensor masked = (*model)(batch, gates_of(mask));
    const HeadMask first = HeadMask(mask.keep().logical_or(at::rand({2, 6}).gt(0.5)));
    const auto in_steps = testing::random_toy_model(kShared, 3, 1);
    remove_heads(*in_steps, first);
    remove_heads(*in_steps, mask);
    remove_heads(*model, mask);
    EXPECT_EQ(model->heads(), mask);
    EXPECT_LE(max_difference((*model)(batch), masked), 1e-12) << mask.to_json();
    EXPECT_EQ(in_steps->fingerprint(), model->fingerprint()) << mask.to_json();
  }
}

TEST(RemovalTest, SlicesOfSharedKvHeads) {
  const AttentionWeights weights = testing::random_toy_model(kShared, 3, 1)->attention(0);
  const AttentionWeights half = slice_heads(weights, 6, {3, 5});
  EXPECT_TRUE(at::equal(half.k, weights.k.slice(0, 2, 4)));
  EXPECT_TRUE(at::equal(half.v, weights.v.slice(0, 2, 4)));
  const std::vector<int64_t> kv_head{1, 1, 1, 1, 0, 1};
  EXPECT_TRUE(at::equal(slice_heads(weights, 6, {4}, {}, kv_head).k, weights.k.slice(0, 0, 2)));
  EXPECT_EQ(slice_heads(weights, 6, {}).k.size(0), 0);
  EXPECT_THROW(slice_heads(weights, 6, {4}, {}, std::vector<int64_t>{0, 1}), std::invalid_argument);
  EXPECT_THROW(slice_heads(weights, 6, {4}, {}, std::vector<int64_t>(6, 2)), std::out_of_range);
}

TEST(RemovalTest, WhatDoesNotFitLeavesTheModel) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const std::string before = model->fingerprint();
  EXPECT_THROW(remove_heads(*model, HeadMask::all(4, 3)), std::invalid_argument);
  EXPECT_THROW(remove_heads(*model, without(kLayout, {{0, 0}}), at::zeros({3, 4, 6})),
               std::invalid_argument);
  EXPECT_THROW(remove_heads(*model, without(kLayout, {{0, 0}}), at::full({3, 4, 5}, NAN)),
               std::invalid_argument);
  EXPECT_EQ(model->fingerprint(), before);
  EXPECT_THROW(slice_heads(model->attention(0), 4, {4}), std::out_of_range);
  EXPECT_THROW(slice_heads(model->attention(0), 4, {1, 1}), std::out_of_range);
  EXPECT_THROW(slice_heads(model->attention(0), 3, {1}), std::invalid_argument);
  EXPECT_THROW(slice_heads({}, 3, {1}), std::invalid_argument);
}

// Refuses new weights for one layer, as a model with a lock on a module might.
class StubbornModel final : public GatedModel {
 public:
  explicit StubbornModel(std::shared_ptr<testing::ToyModel> model) : model_(std::move(model)) {}
  HeadLayout layout() const override { return model_->layout(); }
  HeadMask heads() const override { return model_->heads(); }
  ModelState embed(const Batch& batch) override { return model_->embed(batch); }
  ModelState run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                 Taps* taps) override {
    return model_->run(state, first, last, gates, taps);
  }
  at::Tensor head(const ModelState& state) override { return model_->head(state); }
  AttentionWeights attention(int64_t layer) override { return model_->attention(layer); }
  void replace_attention(int64_t layer, const AttentionWeights& weights,
                         const std::vector<int64_t>& kept) override {
    if (layer == 2) throw std::runtime_error("locked");
    model_->replace_attention(layer, weights, kept);
  }
  std::vector<std::pair<std::string, at::Tensor>> parameters() override {
    return model_->parameters();
  }

 private:
  std::shared_ptr<testing::ToyModel> model_;
};

TEST(RemovalTest, AFailureHalfWayIsTakenBack) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const std::string before = model->fingerprint();
  StubbornModel stubborn(model);
  EXPECT_THROW(remove_heads(stubborn, without(kLayout, {{0, 1}, {1, 1}, {2, 1}})),
               std::runtime_error);
  EXPECT_EQ(model->fingerprint(), before);
  EXPECT_TRUE(model->heads().removed().empty());
}

const HeadLayout kUnits{.layers = 2, .heads = 3, .head_dim = 2, .model_dim = 5, .feed_forward = 70};

// Gates of every kind, a third of them closed, a third soft.
GateSet mixed_gates(uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto gates = [&](std::vector<int64_t> shape) {
    const at::Tensor u = at::rand(shape, generator, at::kDouble);
    return at::where(u < 0.35, at::zeros_like(u), at::where(u < 0.6, at::ones_like(u), 2 * u));
  };
  GateSet set{.heads = gates({2, 3}), .dropped_output = gates({2, 3, 5})};
  set.neurons = gates({2, 70});
  set.attention_sublayers = gates({2});
  set.feed_forward_sublayers = gates({2});
  return set;
}

TEST(UnitRemovalTest, EqualsTheGatesOfEveryUnit) {
  const Batch batch = testing::random_toy_batch(kUnits, 4, 6, 3, 4);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const GateSet gates = mixed_gates(seed);
    const auto model = testing::random_toy_model(kUnits, 3, 1);
    const at::Tensor expected = (*model)(batch, gates);
    remove_units(*model, gates);
    EXPECT_LE(max_difference((*model)(batch), expected), 1e-12) << seed;
    const at::Tensor left = gates.neurons.ne(0) * gates.feed_forward_sublayers.ne(0).unsqueeze(1);
    EXPECT_TRUE(at::equal(model->neurons(), left)) << seed;
    for (int64_t layer = 0; layer < 2; ++layer) {
      const bool open = gates.attention_sublayers[layer].item<double>() != 0;
      EXPECT_EQ(model->sublayers().attention[layer], open) << seed;
      const at::Tensor bias = model->attention(layer).o_bias;
      EXPECT_EQ(bias.eq(0).all().item<bool>(), !open) << seed;
    }
  }
}

TEST(UnitRemovalTest, ABlockWithoutUnitsStillAddsItsBias) {
  const Batch batch = testing::random_toy_batch(kUnits, 4, 6, 3, 4);
  GateSet units{.heads = at::zeros({2, 3}, at::kDouble)}, blocks;
  units.neurons = at::zeros({2, 70}, at::kDouble);
  blocks.attention_sublayers = blocks.feed_forward_sublayers = at::zeros({2}, at::kDouble);
  const auto without_units = testing::random_toy_model(kUnits, 3, 1);
  const auto without_blocks = testing::random_toy_model(kUnits, 3, 1);
  Taps taps{.attention_outputs = true, .feed_forward_outputs = true}, none = taps;
  remove_units(*without_units, units);
  remove_units(*without_blocks, blocks);
  (*without_units)(batch, {}, &taps);
  (*without_blocks)(batch, {}, &none);
  for (int64_t layer = 0; layer < 2; ++layer) {
    const at::Tensor bias = without_units->attention(layer).o_bias;
    EXPECT_TRUE(at::equal(taps.attention_output[layer], bias.expand({4, 6, 5})));
    EXPECT_GT(bias.abs().max().item<double>(), 0);
    EXPECT_TRUE(at::equal(taps.feed_forward_output[layer],
                          without_units->feed_forward(layer).out_bias.expand({4, 6, 5})));
    EXPECT_EQ(none.attention_output[layer].abs().max().item<double>(), 0);
    EXPECT_EQ(none.feed_forward_output[layer].abs().max().item<double>(), 0);
    EXPECT_TRUE(without_units->sublayers().attention[layer]);
    EXPECT_FALSE(without_blocks->sublayers().attention[layer]);
    EXPECT_FALSE(without_blocks->sublayers().feed_forward[layer]);
  }
}

TEST(UnitRemovalTest, BlocksOfNeuronsAreCutWithWhatTheyLeave) {
  GateSet gates;
  gates.blocks = at::tensor({1.0, 0.0, 0.5, 0.0, 1.0, 1.0}, at::kDouble).reshape({2, 3});
  gates.dropped_blocks = at::rand({2, 3, 5}, at::kDouble);
  const auto model = testing::random_toy_model(kUnits, 3, 1);
  const FeedForwardWeights dense = model->feed_forward(0);
  remove_units(*model, gates);
  const at::Tensor places = at::cat({at::arange(32, at::kLong), at::arange(64, 70, at::kLong)});
  const FeedForwardWeights cut = model->feed_forward(0);
  EXPECT_TRUE(at::equal(cut.in, dense.in.index_select(0, places)));
  EXPECT_TRUE(at::equal(cut.out.slice(1, 0, 32), dense.out.slice(1, 0, 32)));
  EXPECT_TRUE(at::allclose(cut.out.slice(1, 32), dense.out.slice(1, 64) * 0.5));
  EXPECT_TRUE(at::allclose(cut.out_bias, dense.out_bias + gates.dropped_blocks[0][1] +
                                             gates.dropped_blocks[0][2] * 0.5));
  EXPECT_EQ(model->neurons()[1].sum().item<int64_t>(), 38);
}

// The golden feed-forward layer, cut.
TEST(UnitRemovalTest, GoldenNeurons) {
  const auto& golden = testing::golden_case("ffn.neuron_gates");
  const auto& in = golden["inputs"];
  const FeedForwardWeights weights{.in = testing::golden_tensor(in["W1"]),
                                   .out = testing::golden_tensor(in["W2"]),
                                   .in_bias = testing::golden_tensor(in["b1"]),
                                   .out_bias = testing::golden_tensor(in["b2"])};
  const FeedForwardWeights cut = slice_neurons(weights, {0, 2});
  const at::Tensor x = testing::golden_tensor(in["x"]);
  const at::Tensor values = at::gelu(at::linear(x, cut.in, cut.in_bias));
  testing::expect_golden(at::linear(values, cut.out, cut.out_bias), golden, "output_removed");
  EXPECT_THROW(slice_neurons(weights, {4}), std::out_of_range);
  EXPECT_THROW(slice_neurons(weights, {1, 1}), std::out_of_range);
  EXPECT_THROW(slice_neurons({}, {}), std::invalid_argument);
}

TEST(UnitRemovalTest, HardGatesInAnyOrderAndTwice) {
  GateSet first, second, both;
  first.neurons = at::ones({2, 70}, at::kDouble);
  second.neurons = first.neurons.clone();
  first.neurons.slice(1, 0, 70, 3).zero_();
  second.neurons.slice(1, 0, 70, 4).zero_();
  first.attention_sublayers = at::tensor({1.0, 0.0}, at::kDouble);
  second.heads = at::tensor({1.0, 0.0, 1.0, 1.0, 0.0, 1.0}, at::kDouble).reshape({2, 3});
  both = first;
  both.neurons = first.neurons * second.neurons;
  both.heads = second.heads;
  const auto at_once = testing::random_toy_model(kUnits, 3, 1);
  remove_units(*at_once, both);
  const auto forwards = testing::random_toy_model(kUnits, 3, 1);
  for (const GateSet& gates : {first, second, first}) remove_units(*forwards, gates);
  const auto backwards = testing::random_toy_model(kUnits, 3, 1);
  for (const GateSet& gates : {second, first, second}) remove_units(*backwards, gates);
  EXPECT_EQ(forwards->fingerprint(), at_once->fingerprint());
  EXPECT_EQ(backwards->fingerprint(), at_once->fingerprint());
  EXPECT_EQ(forwards->sublayers().attention, (std::vector<bool>{true, false}));
}

TEST(UnitRemovalTest, ExactlyOneAllAndNoNeurons) {
  const Batch batch = testing::random_toy_batch(kUnits, 4, 6, 3, 4);
  for (const int64_t count : {0, 1, 70}) {
    GateSet gates;
    gates.neurons = at::ones({2, 70}, at::kDouble);
    gates.neurons.slice(1, 0, count).zero_();
    const auto model = testing::random_toy_model(kUnits, 3, 1);
    const at::Tensor expected = (*model)(batch, gates);
    remove_units(*model, gates);
    EXPECT_LE(max_difference((*model)(batch), expected), 1e-12) << count;
    EXPECT_EQ(model->feed_forward(1).in.size(0), 70 - count);
  }
}

TEST(UnitRemovalTest, WhatDoesNotFitLeavesTheModel) {
  const auto model = testing::random_toy_model(kUnits, 3, 1);
  const auto plain = testing::random_toy_model(kLayout, 3, 1);
  const std::string before = model->fingerprint();
  const auto refuses = [](GatedModel& model, at::Tensor GateSet::*member, const at::Tensor& gates) {
    GateSet set;
    set.*member = gates;
    EXPECT_THROW(remove_units(model, set), std::invalid_argument);
  };
  refuses(*model, &GateSet::heads, at::zeros({4, 2, 3}));
  refuses(*model, &GateSet::neurons, at::zeros({4, 2, 70}));
  refuses(*model, &GateSet::neurons, at::zeros({2, 71}));
  refuses(*model, &GateSet::attention_sublayers, at::zeros({4, 2}));
  refuses(*model, &GateSet::blocks, at::zeros({2, 2}));
  refuses(*model, &GateSet::hidden, at::zeros({5}));
  EXPECT_EQ(model->fingerprint(), before);
  refuses(*plain, &GateSet::neurons, at::zeros({3, 70}));
}

TEST(RemovalTest, SlicesAreCopiesWithoutAGraph) {
  AttentionWeights weights = testing::random_toy_model(kLayout, 3, 1)->attention(0);
  weights.q.set_requires_grad(true);
  const AttentionWeights sliced = slice_heads(weights, 4, {0, 1, 2, 3});
  EXPECT_FALSE(sliced.q.requires_grad());
  EXPECT_NE(sliced.q.const_data_ptr(), weights.q.const_data_ptr());
  EXPECT_NE(sliced.o_bias.const_data_ptr(), weights.o_bias.const_data_ptr());
  EXPECT_TRUE(at::equal(sliced.o, weights.o));

  AttentionWeights plain = weights;
  plain.q_bias = plain.o_bias = at::Tensor();
  EXPECT_FALSE(slice_heads(plain, 4, {1}).q_bias.defined());
  EXPECT_FALSE(slice_heads(plain, 4, {1}).o_bias.defined());
  EXPECT_TRUE(
      at::equal(slice_heads(plain, 4, {1}, at::ones({5})).o_bias, at::ones({5}, at::kDouble)));
}

}  // namespace
}  // namespace headkit
