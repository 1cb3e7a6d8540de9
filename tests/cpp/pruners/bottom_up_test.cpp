#include "headkit/pruners/bottom_up.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "headkit/core/flops.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 2, .heads = 3, .head_dim = 2, .model_dim = 5, .feed_forward = 6};

struct Problem {
  std::shared_ptr<testing::ToyModel> model = testing::random_toy_model(kLayout, 3, 1);
  Batch batch = testing::random_toy_batch(kLayout, 30, 6, 3, 2);
  BatchList data{
      {select_examples(batch, at::arange(11)), select_examples(batch, at::arange(11, 30))}};
  at::Tensor valid = batch.at("attention_mask");

  StaticPruning prune(BottomUpOptions options) const {
    return prune_bottom_up(*model, data, *cross_entropy(), options);
  }
  at::Tensor rows(const at::Tensor& values) const {
    return values.flatten(2).flatten(0, 1).index_select(0, valid.flatten().nonzero().flatten());
  }
  Taps first_layer(const GateSet& gates) const {
    Taps taps;
    taps.head_contexts = taps.attention_outputs = true;
    taps.feed_forward_outputs = taps.neuron_activations = true;
    model->run(model->embed(batch), 0, 1, gates, &taps);
    return taps;
  }
};

TEST(BottomUpTest, StaysWithinTheBudgetAndLeavesTheModel) {
  Problem p;
  const std::string before = p.model->fingerprint();
  const void* memory = p.model->attention(0).o.const_data_ptr();
  const UnitCosts costs = unit_macs(kLayout, p.valid.sum().item<double>() / 30);
  for (const double keep : {0.0, 0.2, 0.5, 0.8}) {
    const StaticPruning found = p.prune({.keep = keep});
    const double spent = costs.total(found.heads.keep().sum().item<double>(),
                                     found.gates.neurons.sum().item<double>());
    EXPECT_LE(spent, keep * costs.total(6, 12) + 1e-9);
    EXPECT_GT(spent + costs.head, keep * costs.total(6, 12));
    EXPECT_NEAR(nlohmann::json::parse(found.details)["cost"], spent, 1e-9);
    EXPECT_EQ(found.refits.size(), 4u);
    EXPECT_FALSE(found.heads_only());
    Problem other;
    apply_pruning(*other.model, found);
    EXPECT_EQ(other.model->heads(), found.heads);
    EXPECT_TRUE(at::equal(other.model->neurons(), found.gates.neurons.ne(0)));
  }
  struct Stop {};
  EXPECT_THROW(p.prune({.progress =
                            [](int64_t done, int64_t) {
                              if (done == 3) throw Stop{};
                            }}),
               Stop);
  EXPECT_EQ(p.model->fingerprint(), before);
  EXPECT_EQ(p.model->attention(0).o.const_data_ptr(), memory);
}

TEST(BottomUpTest, TheFirstSublayersAreLeastSquaresFits) {
  Problem p;
  const StaticPruning found = p.prune({.keep = 0.5, .ridge = 0});
  const Taps dense = p.first_layer({});
  const auto with_one = [](const at::Tensor& x) { return at::constant_pad_nd(x, {0, 1}, 1); };
  const auto fit = [&](const at::Tensor& inputs, const at::Tensor& targets) {
    return std::get<0>(at::linalg_lstsq(with_one(inputs), targets, std::nullopt, "gelsd")).t();
  };
  // Columns of the fit are those of the kept units, then the bias.
  const at::Tensor kept = found.heads.keep()[0].repeat_interleave(2).nonzero().flatten();
  const at::Tensor expected =
      fit(p.rows(dense.head_context[0]).index_select(1, kept), p.rows(dense.attention_output[0]));
  const int64_t count = kept.numel();
  EXPECT_TRUE(at::allclose(found.refits[0].weight.index_select(1, kept),
                           expected.narrow(1, 0, count), 1e-6, 1e-8));
  EXPECT_TRUE(at::allclose(found.refits[0].bias, expected.select(1, count), 1e-6, 1e-8));

  // The feed-forward block: from the drifted stream to the dense one.
  Problem pruned;
  StaticPruning attention_only = found;
  attention_only.heads =
      HeadMask(at::cat({found.heads.keep().narrow(0, 0, 1), at::ones({1, 3}, at::kBool)}));
  attention_only.gates = {};
  attention_only.refits = {found.refits[0]};
  apply_pruning(*pruned.model, attention_only);
  const Taps drifted = pruned.first_layer({});
  const at::Tensor wires = found.gates.neurons[0].nonzero().flatten();
  const at::Tensor targets = p.rows(dense.attention_output[0] + dense.feed_forward_output[0] -
                                    drifted.attention_output[0]);
  const at::Tensor second = fit(p.rows(drifted.neurons[0]).index_select(1, wires), targets);
  EXPECT_TRUE(at::allclose(found.refits[1].weight.index_select(1, wires),
                           second.narrow(1, 0, wires.numel()), 1e-5, 1e-7));
  EXPECT_TRUE(at::allclose(found.refits[1].bias, second.select(1, wires.numel()), 1e-5, 1e-7));
}

TEST(BottomUpTest, NothingRemovedChangesNothing) {
  Problem p;
  const at::Tensor dense = (*p.model)(p.batch);
  const StaticPruning found = p.prune({.keep = 1, .ridge = 0.1});
  apply_pruning(*p.model, found);
  EXPECT_TRUE(at::allclose((*p.model)(p.batch), dense, 0, 1e-9));
}

TEST(BottomUpTest, RefitsComeCloserThanTheMaskAlone) {
  Problem p;
  const at::Tensor dense = (*p.model)(p.batch);
  for (const double keep : {0.5, 0.75}) {
    const StaticPruning found = p.prune({.keep = keep});
    const double masked =
        ((*p.model)(p.batch, found.all_gates()) - dense).square().mean().item<double>();
    Problem other;
    apply_pruning(*other.model, found);
    EXPECT_LT(((*other.model)(p.batch) - dense).square().mean().item<double>(), masked);
  }
}

TEST(BottomUpTest, HeadsAloneAndRefusals) {
  Problem p;
  const StaticPruning found = p.prune({.keep = 0.8, .neurons = false});
  EXPECT_EQ(found.refits.size(), 2u);
  EXPECT_FALSE(found.gates.neurons.defined());
  EXPECT_THROW(p.prune({.keep = 0.01, .neurons = false}), std::invalid_argument);
  EXPECT_THROW(p.prune({.ridge = -1}), std::invalid_argument);
  // Refits are of the model that was pruned.
  apply_pruning(*p.model, found);
  const std::string before = p.model->fingerprint();
  EXPECT_THROW(apply_pruning(*p.model, found), std::invalid_argument);
  EXPECT_EQ(p.model->fingerprint(), before);
  Problem shared;
  AttentionWeights second = shared.model->attention(1);
  second.o = shared.model->attention(0).o;
  shared.model->replace_attention(1, second, {0, 1, 2});
  EXPECT_THROW(shared.prune({}), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
