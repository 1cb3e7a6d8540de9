#include "headkit/scorers/fisher.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "headkit/scorers/gate_gradient.h"
#include "support/golden.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 2, .model_dim = 5};

std::vector<Batch> singles(const Batch& batch) {
  std::vector<Batch> all;
  for (int64_t i = 0; i < batch_size(batch); ++i) {
    all.push_back(select_examples(batch, at::arange(i, i + 1)));
  }
  return all;
}

TEST(FisherTest, GoldenDiagonalAndBlocks) {
  const auto& golden = testing::golden_case("toy.fisher");
  const auto model = testing::golden_toy_model();
  const Batch batch = testing::golden_toy_batch();
  for (const auto& data : {std::vector<Batch>{batch}, singles(batch)}) {
    const FisherInformation found = fisher_information(*model, BatchList(data), *cross_entropy());
    testing::expect_golden(found.heads, golden, "diagonal");
    testing::expect_golden(found.head_blocks, golden, "block");
    EXPECT_EQ(found.samples, 3);
    testing::expect_golden(
        FisherScorer().score(*model, BatchList(data), *cross_entropy(), {}).values, golden,
        "diagonal");
  }
}

TEST(FisherTest, MiniBatchMeansAreSquaredOnlyOnRequest) {
  const auto& golden = testing::golden_case("toy.fisher");
  const auto model = testing::golden_toy_model();
  const BatchList data({testing::golden_toy_batch()});
  testing::expect_golden(
      fisher_information(*model, data, *cross_entropy(), {.per_batch = true}).heads, golden,
      "from_batch_mean");
  testing::expect_golden(
      FisherScorer().score(*model, data, *cross_entropy(), {.granularity = "batch"}).values, golden,
      "from_batch_mean");
}

TEST(FisherTest, GradientsAreThoseOfEachExample) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 7, 6, 3, 2);
  const FisherInformation found =
      fisher_information(*model, BatchList({batch}), *cross_entropy(), {.keep_gradients = true});
  std::vector<at::Tensor> expected;
  for (const Batch& one : singles(batch)) {
    expected.push_back(GateGradientScorer()
                           .score(*model, BatchList({one}), *cross_entropy(),
                                  {.granularity = "signed", .bootstrap = 0})
                           .values);
  }
  EXPECT_TRUE(at::allclose(found.head_gradients, at::stack(expected), 1e-12, 1e-12));
}

TEST(FisherTest, ScalingTheLossByKScalesItByKSquared) {
  class Scaled final : public Objective {
   public:
    std::string name() const override { return "scaled"; }
    at::Tensor loss(const at::Tensor& output, const Batch& batch,
                    const at::Tensor&) const override {
      return 7 * cross_entropy()->loss(output, batch, {});
    }
  };
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const BatchList data({testing::random_toy_batch(kLayout, 5, 6, 3, 2)});
  const auto run = [&](const Objective& objective, const char* normalization) {
    return FisherScorer().score(*model, data, objective, {.normalization = normalization}).values;
  };
  EXPECT_TRUE(at::allclose(run(Scaled(), "none"), 49 * run(*cross_entropy(), "none"), 1e-12));
  for (const char* same : {"layer_l2", "minmax"}) {
    EXPECT_TRUE(at::allclose(run(Scaled(), same), run(*cross_entropy(), same), 1e-12));
  }
  EXPECT_EQ(run(*cross_entropy(), "minmax").min().item<double>(), 0);
  EXPECT_EQ(run(*cross_entropy(), "minmax").max().item<double>(), 1);
}

TEST(FisherTest, ObjectivesWithTheirMinimumAtTheDenseModelAndEmptyDataAreRefused) {
  const auto model = testing::golden_toy_model();
  const BatchList data({testing::golden_toy_batch()});
  EXPECT_THROW(fisher_information(*model, data, *kl_to_dense()), std::invalid_argument);
  EXPECT_THROW(FisherScorer().score(*model, data, *kl_to_dense(), {}), std::invalid_argument);
  EXPECT_THROW(fisher_information(*model, BatchList({}), *cross_entropy()), std::invalid_argument);
  EXPECT_THROW(FisherScorer().score(*model, data, *cross_entropy(), {.granularity = "token"}),
               std::invalid_argument);
}

TEST(FisherTest, NeuronsEqualFiniteDifferences) {
  const HeadLayout layout{
      .layers = 2, .heads = 3, .head_dim = 2, .model_dim = 5, .feed_forward = 4};
  const auto model = testing::random_toy_model(layout, 3, 1);
  const Batch batch = testing::random_toy_batch(layout, 5, 4, 3, 2);
  const FisherInformation found =
      fisher_information(*model, BatchList({batch}), *cross_entropy(), {.keep_gradients = true});
  const auto losses = [&](int64_t layer, int64_t neuron, double gate) {
    GateSet gates;
    gates.neurons = at::ones({2, 4}, at::kDouble);
    gates.neurons[layer][neuron] = gate;
    return cross_entropy()->loss((*model)(batch, gates), batch, {});
  };
  for (int64_t layer = 0; layer < 2; ++layer) {
    for (int64_t neuron = 0; neuron < 4; ++neuron) {
      const at::Tensor slope =
          (losses(layer, neuron, 1 + 1e-5) - losses(layer, neuron, 1 - 1e-5)) / 2e-5;
      EXPECT_NEAR(found.neurons[layer][neuron].item<double>(), slope.square().mean().item<double>(),
                  1e-8);
      EXPECT_TRUE(at::allclose(found.neuron_gradients.select(1, layer).select(1, neuron),
                               slope.to(at::kFloat), 1e-5, 1e-6));
    }
  }
  EXPECT_FALSE(fisher_information(*model, BatchList({batch}), *cross_entropy(), {.neurons = false})
                   .neurons.defined());
}

}  // namespace
}  // namespace headkit
