#include "headkit/pruners/mean_activation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

#include "headkit/pruners/pruner.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

// Two blocks of neurons, the second with 5.
const HeadLayout kLayout{
    .layers = 2, .heads = 3, .head_dim = 2, .model_dim = 5, .feed_forward = 37};

struct Problem {
  std::shared_ptr<testing::ToyModel> model = testing::random_toy_model(kLayout, 3, 1);
  Batch batch = testing::random_toy_batch(kLayout, 8, 6, 3, 2);
  BatchList data{{select_examples(batch, at::arange(3)), select_examples(batch, at::arange(3, 8))}};
};

// Mean activations over the valid tokens of the samples in `counts` [B, L, F].
at::Tensor by_definition(Problem& p, const GateSet& gates, const at::Tensor& counts) {
  Taps taps;
  taps.neuron_activations = true;
  (*p.model)(p.batch, gates, &taps);
  const at::Tensor valid = p.batch.at("attention_mask").to(at::kDouble).unsqueeze(2);
  std::vector<at::Tensor> means;
  for (int64_t l = 0; l < kLayout.layers; ++l) {
    const at::Tensor weight = valid * counts.select(1, l).unsqueeze(1);
    means.push_back((taps.neurons[l] * weight).sum({0, 1}) / weight.sum({0, 1}));
  }
  return at::stack(means);
}

at::Tensor some_closed(uint64_t seed, std::vector<int64_t> shape) {
  at::manual_seed(seed);
  return at::rand(shape, at::kDouble).gt(0.5).to(at::kDouble);
}

TEST(MeanActivationTest, IsTheMeanOverValidTokensOfTheModelUnderItsGates) {
  Problem p;
  const at::Tensor all = at::ones({8, 2, 37}, at::kDouble);
  EXPECT_TRUE(at::allclose(mean_neuron_activations(*p.model, p.data), by_definition(p, {}, all),
                           1e-10, 1e-12));
  GateSet gates;
  gates.heads = some_closed(1, {2, 3});
  gates.neurons = some_closed(2, {2, 37});
  EXPECT_TRUE(at::allclose(mean_neuron_activations(*p.model, p.data, {.gates = gates}),
                           by_definition(p, gates, all), 1e-10, 1e-12));
}

TEST(MeanActivationTest, CountsTheSamplesInWhichANeuronIsClosed) {
  Problem p;
  const at::Tensor gates = some_closed(3, {8, 2, 37});
  MeanOutputOptions options;
  int64_t first = 0;
  options.decide = [&](const ModelState& state) {
    GateSet decided;
    decided.neurons = gates.narrow(0, first, state.hidden.size(0));
    first += state.hidden.size(0);
    return decided;
  };
  GateSet all;
  all.neurons = gates;
  at::Tensor counts = 1 - gates;
  counts = at::where(counts.sum(0, true).gt(0), counts, at::ones({}, at::kDouble));
  EXPECT_TRUE(at::allclose(mean_neuron_activations(*p.model, p.data, options),
                           by_definition(p, all, counts), 1e-10, 1e-12));
}

TEST(MeanActivationTest, BlocksAddTheMeansOfTheirNeurons) {
  Problem p;
  const at::Tensor means = mean_neuron_activations(*p.model, p.data);
  const at::Tensor blocks = mean_block_outputs(*p.model, p.data);
  ASSERT_EQ(blocks.sizes(), at::IntArrayRef({2, 2, 5}));
  for (int64_t l = 0; l < 2; ++l) {
    const at::Tensor out = p.model->feed_forward(l).out;
    EXPECT_TRUE(at::allclose(blocks[l][0], at::mv(out.narrow(1, 0, 32), means[l].narrow(0, 0, 32)),
                             1e-10, 1e-12));
    EXPECT_TRUE(at::allclose(blocks[l][1], at::mv(out.narrow(1, 32, 5), means[l].narrow(0, 32, 5)),
                             1e-10, 1e-12));
  }
}

StaticPruning some_pruning(Problem& p, const at::Tensor& neurons) {
  StaticPruning pruning{.heads = p.model->heads()};
  pruning.gates.neurons = neurons;
  pruning.dropped_neurons = mean_neuron_activations(*p.model, p.data, {.gates = pruning.gates});
  return pruning;
}

TEST(MeanActivationTest, OutputBiasesTakeOverWhatNeuronsThatGoAddedOnAverage) {
  for (const bool soft : {false, true}) {
    Problem p;
    const StaticPruning pruning =
        some_pruning(p, some_closed(5, {2, 37}) * (soft ? 0.5 : 1) + (soft ? 0.25 : 0));
    Problem plain;
    std::vector<int64_t> all(37);
    std::iota(all.begin(), all.end(), 0);
    for (int64_t l = 0; l < 2; ++l) {
      FeedForwardWeights weights = plain.model->feed_forward(l);
      for (int64_t f = 0; f < 37; ++f) {
        weights.out_bias = weights.out_bias + weights.out.select(1, f) *
                                                  (1 - pruning.gates.neurons[l][f]) *
                                                  pruning.dropped_neurons[l][f];
      }
      plain.model->replace_feed_forward(l, weights, all);
    }
    const at::Tensor expected = (*plain.model)(p.batch, pruning.all_gates());
    apply_pruning(*p.model, pruning);
    EXPECT_TRUE(at::allclose((*p.model)(p.batch), expected, 1e-10, 1e-12));
    if (soft) continue;
    apply_pruning(*p.model, pruning);
    EXPECT_TRUE(at::allclose((*p.model)(p.batch), expected, 1e-10, 1e-12));
    EXPECT_TRUE(mean_neuron_activations(*p.model, p.data)
                    .masked_select(pruning.gates.neurons.eq(0))
                    .eq(0)
                    .all()
                    .item<bool>());
  }
}

TEST(MeanActivationTest, AMeanIsTheConstantOfLeastSquaredError) {
  Problem p;
  const StaticPruning pruning = some_pruning(p, some_closed(5, {2, 37}));
  const auto apart = [&](const at::Tensor& constants) {
    Problem fresh;
    StaticPruning other = pruning;
    other.dropped_neurons = constants;
    apply_pruning(*fresh.model, other);
    const auto block = [&](testing::ToyModel& model) {
      Taps taps;
      taps.feed_forward_outputs = true;
      model.run(model.embed(p.batch), 0, 1, {}, &taps);  // layer 0 sees the same inputs
      return taps.feed_forward_output[0];
    };
    return (block(*fresh.model) - block(*p.model))
        .index({p.batch.at("attention_mask")})
        .square()
        .sum()
        .item<double>();
  };
  const double best = apart(pruning.dropped_neurons);
  EXPECT_LT(best, apart(at::zeros({2, 37}, at::kDouble)));
  EXPECT_LT(best, apart(pruning.dropped_neurons * 1.2));
  EXPECT_LT(best, apart(pruning.dropped_neurons + 0.05));
}

TEST(MeanActivationTest, RefusesWhatDoesNotFit) {
  Problem p;
  EXPECT_THROW(mean_neuron_activations(*p.model, BatchList({})), std::invalid_argument);
  MeanOutputOptions options;
  options.gates.neurons = at::ones({2, 36});
  EXPECT_THROW(mean_neuron_activations(*p.model, p.data, options), std::invalid_argument);
  StaticPruning pruning = some_pruning(p, some_closed(5, {2, 37}));
  pruning.dropped_neurons = at::ones({2, 36});
  EXPECT_THROW(apply_pruning(*p.model, pruning), std::invalid_argument);
  pruning = some_pruning(p, some_closed(5, {2, 37}));
  pruning.gates.neurons = at::Tensor();
  EXPECT_THROW(apply_pruning(*p.model, pruning), std::invalid_argument);
  EXPECT_TRUE(p.model->is_whole());
  HeadLayout no_neurons = kLayout;
  no_neurons.feed_forward = 0;
  const auto model = testing::random_toy_model(no_neurons, 3, 1);
  EXPECT_THROW(mean_neuron_activations(*model, p.data), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
