#include "headkit/pruners/make_ladder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "headkit/pruners/mean_activation.h"
#include "headkit/pruners/removal.h"
#include "headkit/pruners/sort_neurons.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{2, 4, 2, 5, 70};  // blocks of 32, 32 and 6 neurons

class MakeLadderTest : public ::testing::Test {
 protected:
  LadderPlan plan() {
    LadderPlan plan;
    plan.scores.values =
        at::tensor({8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 4.0}, at::kDouble).reshape({2, 4});
    plan.head_shares = {0.25, 0.5};
    return plan;
  }
  // Neuron scores that make blocks count 1 .. 6.
  static at::Tensor neuron_scores() {
    at::Tensor scores = at::zeros({2, 70}, at::kDouble);
    scores.slice(1, 0, 32) = at::tensor({6.0, 1.0}, at::kDouble).unsqueeze(1) / 32;
    scores.slice(1, 32, 64) = at::tensor({3.0, 4.0}, at::kDouble).unsqueeze(1) / 32;
    scores.slice(1, 64, 70) = at::tensor({2.0, 5.0}, at::kDouble).unsqueeze(1) / 6;
    return scores;
  }

  std::shared_ptr<testing::ToyModel> model_ = testing::random_toy_model(kLayout, 3, 7);
  Batch batch_ = testing::random_toy_batch(kLayout, 12, 6, 3, 8);
  BatchList data_{{batch_}};
};

TEST_F(MakeLadderTest, KeepsTheBestHeadsAndBlocks) {
  LadderPlan shares = plan();
  shares.neuron_scores = neuron_scores();
  shares.block_shares = {1.0 / 6, 0.5};
  const Ladder ladder = make_ladder(*model_, shares);
  ASSERT_EQ(ladder.size(), 3);
  const auto heads = [](std::vector<int64_t> keep) {
    return HeadMask(at::tensor(keep, at::kLong).reshape({2, 4}));
  };
  const auto blocks = [](std::vector<int64_t> open) {
    return at::tensor(open, at::kLong).reshape({2, 3}).to(at::kBool);
  };
  EXPECT_EQ(ladder.rung(0).heads, heads({1, 0, 1, 0, 0, 0, 0, 0}));
  EXPECT_EQ(ladder.rung(1).heads, heads({1, 0, 1, 0, 1, 0, 1, 0}));
  EXPECT_EQ(ladder.rung(2).heads, HeadMask::all(2, 4));
  EXPECT_TRUE(at::equal(ladder.rung(0).blocks, blocks({1, 0, 0, 0, 0, 0})));
  EXPECT_TRUE(at::equal(ladder.rung(1).blocks, blocks({1, 0, 0, 0, 1, 1})));
  EXPECT_TRUE(ladder.rung(2).blocks.all().item<bool>());

  shares.min_heads_per_layer = 1;
  shares.min_blocks_per_layer = 1;
  shares.block_shares = {1.0 / 3, 0.5};
  const Ladder floored = make_ladder(*model_, shares);
  EXPECT_EQ(floored.rung(0).heads, heads({1, 0, 0, 0, 1, 0, 0, 0}));
  EXPECT_TRUE(at::equal(floored.rung(0).blocks, blocks({1, 0, 0, 0, 0, 1})));
  shares.head_shares = {0.125, 0.5};
  EXPECT_THROW(make_ladder(*model_, shares), std::invalid_argument);
}

TEST_F(MakeLadderTest, FollowsAnOrderAndWhatIsThere) {
  LadderPlan ordered;
  ordered.order = {{1, 3}, {0, 0}, {0, 1}, {1, 0}, {0, 2}};
  ordered.head_shares = {0.5, 0.75};
  const Ladder ladder = make_ladder(*model_, ordered);
  EXPECT_EQ(ladder.rung(0).heads.removed().size(), 4u);
  EXPECT_FALSE(ladder.rung(1).heads.contains({1, 3}));
  EXPECT_FALSE(ladder.rung(1).heads.contains({0, 0}));
  EXPECT_TRUE(ladder.rung(1).heads.contains({0, 1}));
  ordered.head_shares = {0.25};  // 6 heads would have to go, 5 may
  EXPECT_THROW(make_ladder(*model_, ordered), std::invalid_argument);
  ordered.order.push_back({1, 3});
  EXPECT_THROW(make_ladder(*model_, ordered), std::invalid_argument);

  const HeadMask left(at::tensor({1, 1, 1, 0, 1, 1, 0, 0}, at::kLong).reshape({2, 4}));
  remove_heads(*model_, left);
  const Ladder of_rest = make_ladder(*model_, plan());
  EXPECT_EQ(of_rest.rung(2).heads, left);
  EXPECT_EQ(of_rest.rung(1).heads.count(), 3);
  EXPECT_TRUE(of_rest.rung(1).heads.is_subset_of(left));
}

TEST_F(MakeLadderTest, RefusesPlansThatDoNotFit) {
  for (const auto& change : std::vector<std::function<void(LadderPlan&)>>{
           [](LadderPlan& p) { p.head_shares = {}; },
           [](LadderPlan& p) { p.head_shares = {0.5, 0.25}; },
           [](LadderPlan& p) { p.head_shares = {-0.1}; },
           [](LadderPlan& p) { p.scores.values = at::Tensor(); },
           [](LadderPlan& p) { p.order = {{0, 0}}; },
           [](LadderPlan& p) { p.block_shares = {0.5, 0.6}; },
           [](LadderPlan& p) { p.neuron_scores = neuron_scores(); },
           [](LadderPlan& p) { p.common_layers = 2; },
           [](LadderPlan& p) {
             p.neuron_scores = neuron_scores();
             p.block_shares = {0.5};
           }}) {
    LadderPlan wrong = plan();
    change(wrong);
    EXPECT_THROW(make_ladder(*model_, wrong), std::invalid_argument);
  }
}

TEST_F(MakeLadderTest, CompensatesWithWhatClosedUnitsGiveOnTheRung) {
  LadderPlan measured = plan();
  measured.neuron_scores = neuron_scores();
  measured.block_shares = {1.0 / 6, 0.5};
  measured.data = &data_;
  const Ladder ladder = make_ladder(*model_, measured);
  const at::Tensor valid = batch_.at("attention_mask").to(at::kDouble);
  for (int64_t r = 0; r < 2; ++r) {
    const Rung& rung = ladder.rung(r);
    // In layer 0 nothing below is closed: means of what the units give in the dense model.
    Taps taps;
    taps.head_contexts = taps.neuron_activations = true;
    model_->run(model_->embed(batch_), 0, 1, rung.gates(batch_.at("x")), &taps);
    for (int64_t h = 0; h < 4; ++h) {
      const at::Tensor mean =
          at::einsum("bt,btd->d", {valid, taps.head_context[0].select(2, h)}) / valid.sum();
      const at::Tensor expected = at::mv(model_->attention(0).o.slice(1, 2 * h, 2 * h + 2), mean);
      EXPECT_TRUE(at::allclose(rung.dropped_output[0][h],
                               rung.heads.contains({0, h}) ? at::zeros_like(expected) : expected,
                               1e-10, 1e-12));
    }
    for (int64_t n = 0; n < 3; ++n) {
      const int64_t first = 32 * n, last = std::min<int64_t>(first + 32, 70);
      const at::Tensor mean =
          at::einsum("bt,btn->n", {valid, taps.neurons[0].slice(2, first, last)}) / valid.sum();
      const at::Tensor expected = at::mv(model_->feed_forward(0).out.slice(1, first, last), mean);
      EXPECT_TRUE(at::allclose(rung.dropped_blocks[0][n],
                               rung.blocks[0][n].item<bool>() ? at::zeros_like(expected) : expected,
                               1e-10, 1e-12));
    }
  }
  EXPECT_FALSE(ladder.rung(2).dropped_output.defined());
  // A second measurement under the rung changes the upper layer by what the first one closed.
  MeanOutputOptions options;
  options.gates = ladder.rung(0).gates(batch_.at("x"));
  const at::Tensor again = mean_block_outputs(*model_, data_, options);
  EXPECT_TRUE(at::allclose(again[0][1], ladder.rung(0).dropped_blocks[0][1], 1e-10, 1e-12));
}

TEST_F(MakeLadderTest, RungsThatAreDecidedMidwayShareTheirFirstLayers) {
  LadderPlan common = plan();
  common.common_layers = 1;
  common.data = &data_;
  const Ladder ladder = make_ladder(*model_, common);
  EXPECT_EQ(ladder.rung(1).heads.layer_heads(0), ladder.rung(0).heads.layer_heads(0));
  EXPECT_EQ(ladder.rung(1).heads.layer_heads(1), (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(ladder.shared_layers(1), 1);
  EXPECT_EQ(ladder.rung(2).heads, HeadMask::all(2, 4));
}

TEST_F(MakeLadderTest, BlockMeansAreThoseOfTheSamplesThatCloseThem) {
  at::manual_seed(2);
  MeanOutputOptions options;
  options.gates.blocks = (at::rand({12, 2, 3}) < 0.5).to(at::kDouble);
  options.gates.blocks.select(2, 1).fill_(1);
  const at::Tensor means = mean_block_outputs(*model_, data_, options);
  const at::Tensor valid = batch_.at("attention_mask").to(at::kDouble);
  Taps taps;
  taps.neuron_activations = true;
  model_->run(model_->embed(batch_), 0, 2, options.gates, &taps);
  for (int64_t l = 0; l < 2; ++l) {
    for (int64_t n = 0; n < 3; ++n) {
      const int64_t first = 32 * n, last = std::min<int64_t>(first + 32, 70);
      at::Tensor weight =
          valid * (options.gates.blocks.select(1, l).select(1, n) == 0).unsqueeze(1);
      if (n == 1) weight = valid;  // no sample closes it: the mean over all
      const at::Tensor mean =
          at::einsum("bt,btn->n", {weight, taps.neurons[l].slice(2, first, last)}) / weight.sum();
      EXPECT_TRUE(at::allclose(means[l][n],
                               at::mv(model_->feed_forward(l).out.slice(1, first, last), mean),
                               1e-10, 1e-12));
    }
  }
}

TEST_F(MakeLadderTest, SortedNeuronsGiveTheSameOutputs) {
  const at::Tensor before = (*model_)(batch_);
  const at::Tensor weight = model_->feed_forward(1).in.clone();
  at::manual_seed(4);
  const at::Tensor scores = at::randn({2, 70}, at::kDouble);
  const at::Tensor order = sort_neurons(*model_, scores);
  const at::Tensor sorted = scores.gather(1, order);
  EXPECT_TRUE((sorted.slice(1, 1) <= sorted.slice(1, 0, -1)).all().item<bool>());
  EXPECT_TRUE(at::equal(model_->feed_forward(1).in, weight.index_select(0, order[1])));
  EXPECT_TRUE(at::allclose((*model_)(batch_), before, 1e-12, 1e-13));
  LadderPlan prefixes = plan();
  prefixes.neuron_scores = sorted - sorted.min() + 1;
  prefixes.block_shares = {0.4, 0.8};
  const Ladder ladder = make_ladder(*model_, prefixes);
  for (const Rung& rung : ladder.rungs()) {
    const at::Tensor open = rung.blocks.to(at::kLong);
    EXPECT_TRUE((open.slice(1, 1) <= open.slice(1, 0, -1)).all().item<bool>()) << "no prefix";
  }
  order_neurons(*model_, std::get<1>(order.sort(1)));
  EXPECT_TRUE(at::equal(model_->feed_forward(1).in, weight));
  EXPECT_THROW(order_neurons(*model_, at::zeros({2, 70}, at::kLong)), std::invalid_argument);
  EXPECT_THROW(sort_neurons(*model_, at::zeros({2, 69})), std::invalid_argument);
  EXPECT_THROW(sort_neurons(*model_, at::full({2, 70}, NAN)), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
