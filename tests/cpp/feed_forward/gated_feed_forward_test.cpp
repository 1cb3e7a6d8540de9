#include "headkit/feed_forward/gated_feed_forward.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <stdexcept>

#include "headkit/feed_forward/reference.h"

namespace headkit {
namespace {

struct Layer {
  at::Tensor x = at::randn({3, 5, 12});
  FeedForwardWeights weights{at::randn({70, 12}), at::randn({12, 70}), at::randn({70, 12}),
                             at::randn({70}),     at::randn({70}),     at::randn({12})};
  at::Tensor gate = at::rand({3, 3}).mul_(at::rand({3, 3}).lt(0.6));
};

TEST(GatedFeedForward, IsTheReference) {
  at::manual_seed(1);
  const Layer layer;
  for (const char* activation : {"gelu", "gelu_tanh", "relu", "silu"}) {
    const FeedForwardInput input = FeedForwardInput()
                                       .activation(activation)
                                       .gate(layer.gate)
                                       .dropped_output(at::randn({3, 12}));
    EXPECT_TRUE(at::allclose(gated_feed_forward(layer.x, layer.weights, input),
                             reference_feed_forward(layer.x, layer.weights, input), 1e-4, 1e-3))
        << activation;
  }
}

TEST(GatedFeedForward, APrefixOpensLeadingBlocks) {
  at::manual_seed(2);
  const Layer layer;
  const at::Tensor prefix = at::tensor({0, 2, 3}, at::kLong);
  const at::Tensor gate = at::tensor({0., 0., 0., 1., 1., 0., 1., 1., 1.}, at::kFloat).view({3, 3});
  EXPECT_TRUE(
      gated_feed_forward(layer.x, layer.weights, FeedForwardInput().prefix(prefix))
          .equal(gated_feed_forward(layer.x, layer.weights, FeedForwardInput().gate(gate))));
}

TEST(GatedFeedForward, ThrowsWhatItsHeaderSays) {
  const Layer layer;
  const auto run = [&](const FeedForwardInput& input) {
    gated_feed_forward(layer.x, layer.weights, input);
  };
  EXPECT_THROW(run(FeedForwardInput().activation("tanh")), std::invalid_argument);
  EXPECT_THROW(run(FeedForwardInput().block_size(0)), std::invalid_argument);
  EXPECT_THROW(run(FeedForwardInput().gate(at::ones({2}))), std::invalid_argument);
  EXPECT_THROW(run(FeedForwardInput().prefix(at::tensor({0, 1, 4}, at::kLong))),
               std::invalid_argument);
  at::Tensor broken = at::ones({3});
  broken[1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(run(FeedForwardInput().gate(broken)), std::invalid_argument);
}

TEST(GatedFeedForward, SaysItsBackend) {
  const Layer layer;
  EXPECT_EQ(feed_forward_backend(layer.x, layer.weights).name, "cpu");
  const FeedForwardWeights wide{
      layer.weights.in.to(at::kDouble), layer.weights.out.to(at::kDouble), {}, {}, {}, {}};
  EXPECT_EQ(feed_forward_backend(layer.x.to(at::kDouble), wide).name, "aten");
}

}  // namespace
}  // namespace headkit
