#include "headkit/pruners/removal.h"

#include <ATen/ATen.h>
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
