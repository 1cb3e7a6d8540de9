#include "headkit/attention/key_values.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <stdexcept>

#include "attention_case.h"
#include "headkit/attention/reference.h"

namespace headkit {
namespace {

// Six query heads over two KV heads, rotary and normed.
struct GroupedCase : AttentionCase {
  GroupedCase() : AttentionCase(2, 9, 6, 4, 10) {
    weights.k = weights.k.narrow(0, 0, 8);
    weights.v = weights.v.narrow(0, 0, 8);
    weights.k_bias = weights.k_bias.narrow(0, 0, 8);
    weights.v_bias = weights.v_bias.narrow(0, 0, 8);
    const at::Tensor angle = at::randn({1, 9, 2}, at::kDouble);
    cosines = angle.cos().repeat({1, 1, 2});
    sines = angle.sin().repeat({1, 1, 2});
    norm = at::rand({4}, at::kDouble);
  }

  AttentionInput input() const {
    return AttentionInput().rotary(cosines, sines).q_norm(norm).is_causal(true).window(4);
  }
  KeyValues keys_values() const {
    return project_kv(x, weights, 2,
                      {.rotary_cos = cosines, .rotary_sin = sines, .k_norm_weight = norm});
  }

  at::Tensor cosines, sines, norm;
};

TEST(KeyValues, AreTheFirstHalfOfGatedAttention) {
  const GroupedCase a;
  const at::Tensor gate = at::tensor({1.0, 0.0, 0.5, 0.0, 0.0, 2.0});
  const auto whole = a.input().k_norm(a.norm).num_kv_heads(2).gate(gate);
  const at::Tensor truth = reference_attention(a.x, a.weights, 6, whole);
  EXPECT_TRUE(at::allclose(gated_attention(a.x, a.weights, 6, whole), truth));
  const KeyValues kv = a.keys_values();
  const auto half = a.input().gate(gate);
  EXPECT_TRUE(at::allclose(attend(a.x, kv, a.weights, 6, half), truth));
  const auto given = a.input().gate(gate).keys_values(kv.k, kv.v);
  EXPECT_TRUE(at::allclose(reference_attention(a.x, a.weights, 6, given), truth));
  EXPECT_TRUE(at::allclose(head_contexts(a.x, a.weights, 6, given),
                           head_contexts(a.x, a.weights, 6, whole)));
}

TEST(KeyValues, ALaterQueryStandsAtItsOffset) {
  const GroupedCase a;
  const KeyValues kv = a.keys_values();
  const at::Tensor whole = attend(a.x, kv, a.weights, 6, a.input());
  const auto step =
      a.input().rotary(a.cosines.narrow(1, 7, 1), a.sines.narrow(1, 7, 1)).query_offset(7);
  EXPECT_TRUE(
      at::allclose(attend(a.x.narrow(1, 7, 1), kv, a.weights, 6, step), whole.narrow(1, 7, 1)));
}

TEST(KeyValues, CarryGradients) {
  GroupedCase a;
  a.x.requires_grad_();
  a.norm.requires_grad_();
  const at::Tensor direction = at::randn_like(a.x);
  const auto gradients = [&](const at::Tensor& y) {
    return torch::autograd::grad({y}, {a.x, a.norm}, {direction});
  };
  const auto found = gradients(attend(a.x, a.keys_values(), a.weights, 6, a.input()));
  const auto truth =
      gradients(reference_attention(a.x, a.weights, 6, a.input().k_norm(a.norm).num_kv_heads(2)));
  for (size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(at::allclose(found[i], truth[i])) << i;
}

TEST(KeyValues, ThrowInvalidArgument) {
  const GroupedCase a;
  EXPECT_THROW(project_kv(a.x, a.weights, 3), std::invalid_argument);
  EXPECT_THROW(project_kv(at::Tensor(), a.weights, 2), std::invalid_argument);
  EXPECT_THROW(project_kv(a.x, {}, 2), std::invalid_argument);
  EXPECT_THROW(attend(a.x, {}, a.weights, 6), std::invalid_argument);
  EXPECT_THROW(attend(a.x, a.keys_values(), a.weights, 6, a.input().k_norm(a.norm)),
               std::invalid_argument);
  EXPECT_THROW(gated_attention(a.x, a.weights, 6, AttentionInput().num_kv_heads(2).query_offset(1)),
               std::invalid_argument);
}

}  // namespace
}  // namespace headkit
