#include "headkit/attention/multi_head_attention.h"

#include <gtest/gtest.h>
#include <torch/serialize.h>

#include <sstream>
#include <stdexcept>

#include "headkit/attention/reference.h"

namespace headkit {
namespace {

TEST(MultiHeadAttention, HasFourProjections) {
  const MultiHeadAttention attention(MultiHeadAttentionOptions(10, 3).head_dim(4).bias(false));
  EXPECT_EQ(attention->named_parameters().size(), 4);
  EXPECT_EQ(attention->q_proj->weight.sizes(), at::IntArrayRef({12, 10}));
  EXPECT_EQ(attention->o_proj->weight.sizes(), at::IntArrayRef({10, 12}));
  EXPECT_LE(attention->q_proj->weight.abs().max().item<double>(), std::sqrt(6.0 / 22.0));

  const MultiHeadAttention with_bias(12, 3);
  EXPECT_EQ(with_bias->named_parameters().size(), 8);
  EXPECT_EQ(with_bias->v_proj->bias.abs().max().item<double>(), 0.0);
}

TEST(MultiHeadAttention, ForwardIsGatedAttention) {
  MultiHeadAttention attention(12, 3);
  const at::Tensor x = at::randn({2, 5, 12});
  const auto input = AttentionInput().gate(at::tensor({1.0, 0.0, 0.5}).to(at::kFloat));
  const at::Tensor truth = reference_attention(x, attention->weights(), 3, input);
  EXPECT_TRUE(at::allclose(attention->forward(x, input), truth, 1e-5, 1e-6));
  EXPECT_TRUE(attention->forward(x).requires_grad());
}

TEST(MultiHeadAttention, GroupsQueriesAndAttendsToAnotherSource) {
  MultiHeadAttention attention(MultiHeadAttentionOptions(12, 6).num_kv_heads(2));
  EXPECT_EQ(attention->k_proj->weight.sizes(), at::IntArrayRef({4, 12}));
  const at::Tensor x = at::randn({2, 5, 12}), source = at::randn({2, 7, 12});
  const auto input = AttentionInput().kv(source);
  const auto full = AttentionInput().kv(source).num_kv_heads(2);
  EXPECT_TRUE(at::allclose(attention->forward(x, input),
                           reference_attention(x, attention->weights(), 6, full), 1e-5, 1e-6));
}

TEST(MultiHeadAttention, IsClonedAndStored) {
  MultiHeadAttention attention(12, 3);
  const at::Tensor x = at::randn({2, 5, 12});
  const at::NoGradGuard no_grad;
  const at::Tensor y = attention->forward(x);
  const auto clone = std::dynamic_pointer_cast<MultiHeadAttentionImpl>(attention->clone());
  EXPECT_TRUE(at::equal(clone->forward(x), y));

  std::stringstream file;
  torch::save(attention, file);
  MultiHeadAttention loaded(12, 3);
  torch::load(loaded, file);
  EXPECT_TRUE(at::equal(loaded->forward(x), y));
}

TEST(MultiHeadAttention, NoHeadsIsLegal) {
  MultiHeadAttention attention(6, 0);
  const at::Tensor y = attention->forward(at::randn({2, 5, 6}));
  EXPECT_EQ(y.abs().max().item<double>(), 0.0);
}

TEST(MultiHeadAttention, RefusesSizesThatDoNotFit) {
  EXPECT_THROW(MultiHeadAttention(10, 3), std::invalid_argument);
  EXPECT_THROW(MultiHeadAttention(-1, 3), std::invalid_argument);
  EXPECT_THROW(MultiHeadAttention(MultiHeadAttentionOptions(12, 4).num_kv_heads(3)),
               std::invalid_argument);
}

}  // namespace
}  // namespace headkit
