#include "headkit/models/sentence_probe.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "support/toy_model.h"

namespace headkit {
namespace {

using namespace headkit::testing;

TEST(SentenceProbeTest, EmbeddingIsTheNormalisedMeanOfValidTokens) {
  const at::Tensor hidden =
      at::tensor({3., 0., 0., 4., 100., 100.}, at::kDouble).reshape({1, 3, 2});
  const at::Tensor mask = at::tensor({1, 1, 0}, at::kLong).to(at::kBool).unsqueeze(0);
  const at::Tensor expected = at::tensor({0.6, 0.8}, at::kDouble).unsqueeze(0);
  EXPECT_TRUE(at::allclose(sentence_embedding(hidden, mask), expected));
  EXPECT_TRUE(at::allclose(sentence_embedding(hidden.slice(1, 0, 2), {}), expected));
  EXPECT_TRUE(at::isfinite(sentence_embedding(hidden, at::zeros_like(mask))).all().item<bool>());
  EXPECT_THROW(sentence_embedding(hidden[0], {}), std::invalid_argument);
  EXPECT_THROW(sentence_embedding(hidden, mask.slice(1, 0, 2)), std::invalid_argument);
}

TEST(SentenceProbeTest, ProbeIsLinearOnTheEmbedding) {
  const HeadLayout layout{2, 3, 4, 10, 0};
  const auto model = random_toy_model(layout, 5, 3);
  const Batch batch = random_toy_batch(layout, 4, 6, 5, 4);
  const GateSet gates{.heads = at::rand({4, 2, 3}, at::kDouble)};
  const at::Tensor weight = at::randn({2, 10}, at::kDouble), bias = at::randn({2}, at::kDouble);

  const auto embedding = with_sentence_embedding(model);
  const at::Tensor vectors = (*embedding)(batch, gates);
  EXPECT_TRUE(at::allclose(vectors.norm(2, {1}), at::ones({4}, at::kDouble)));
  const at::Tensor pooled = model->pooled(model->run(model->embed(batch), 0, 2, gates));
  EXPECT_TRUE(at::allclose(vectors * pooled.norm(2, {1}, true), pooled));

  const auto probe = with_sentence_probe(model, weight, bias);
  EXPECT_TRUE(at::allclose((*probe)(batch, gates), vectors.matmul(weight.t()) + bias));
  EXPECT_EQ(probe->fingerprint(), model->fingerprint());
  EXPECT_EQ(probe->layout(), layout);

  EXPECT_THROW(with_sentence_probe(model, at::zeros({2, 9}), bias), std::invalid_argument);
  EXPECT_THROW(with_sentence_probe(model, weight, at::zeros({3})), std::invalid_argument);
  EXPECT_THROW(with_sentence_probe(nullptr, weight, bias), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
