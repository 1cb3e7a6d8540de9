#include "headkit/attention/gated_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "attention_case.h"
#include "headkit/attention/reference.h"

namespace headkit {
namespace {

const at::Tensor& gate() {
  static const at::Tensor value = at::tensor({1.0, 0.0, 0.5, 0.0, 0.0, 0.0}).view({2, 3});
  return value;
}

class ForcedBackend {
 public:
  explicit ForcedBackend(const char* name) { setenv("HEADKIT_BACKEND", name, 1); }
  ~ForcedBackend() { unsetenv("HEADKIT_BACKEND"); }
};

TEST(GatedAttention, EqualsTheReference) {
  const AttentionCase a(2, 9, 3, 4, 10);
  const at::Tensor mask = at::arange(9).lt(at::tensor({9, 4}).view({2, 1}));
  for (const bool skip : {true, false}) {
    for (const bool causal : {true, false}) {
      const auto input = AttentionInput()
                             .gate(gate())
                             .skip(skip)
                             .key_padding_mask(mask)
                             .is_causal(causal)
                             .attn_bias(at::randn({3, 9, 9}, at::kDouble))
                             .dropped_output(at::randn({3, 10}, at::kDouble))
                             .scale(0.3)
                             .dropout(0.2, 11);
      const at::Tensor found = gated_attention(a.x, a.weights, a.heads, input);
      const at::Tensor truth = reference_attention(a.x, a.weights, a.heads, input);
      EXPECT_TRUE(at::allclose(found, truth)) << "skip " << skip << ", causal " << causal;
    }
  }
}

TEST(GatedAttention, BackwardIsThatOfTheReference) {
  AttentionCase a(2, 9, 3, 4, 10);
  const at::Tensor g = gate().clone().requires_grad_();
  a.x.requires_grad_();
  a.weights.k.requires_grad_();
  const at::Tensor direction = at::randn_like(a.x);
  const auto gradients = [&](const at::Tensor& y) {
    return torch::autograd::grad({y}, {a.x, a.weights.k, g}, {direction});
  };
  const auto input = AttentionInput().gate(g).skip(false);
  const auto found = gradients(gated_attention(a.x, a.weights, a.heads, input));
  const auto truth = gradients(reference_attention(a.x, a.weights, a.heads, input));
  for (size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(at::allclose(found[i], truth[i])) << i;
}

TEST(GatedAttention, ThrowsInvalidArgument) {
  const AttentionCase a(2, 9, 3, 4, 10);
  try {
    gated_attention(a.x, a.weights, a.heads, AttentionInput().gate(at::ones({4})));
    FAIL() << "no error";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "[gated_attention] expected gate of shape [H], [B, H] or [B, T, H]; found shape "
                 "[4] with x of shape [2, 9, 10] and H = 3");
  }
  EXPECT_THROW(gated_attention(at::Tensor(), a.weights, 3), std::invalid_argument);
  EXPECT_THROW(gated_attention(a.x, {}, 3), std::invalid_argument);
  EXPECT_THROW(reference_attention(a.x, a.weights, 5), std::invalid_argument);
  EXPECT_THROW(head_contexts(a.x, a.weights, 5), std::invalid_argument);
}

TEST(GatedAttention, ForcedBackendIsTakenOrRefused) {
  const AttentionCase a(2, 9, 3, 4, 10);
  for (const std::string name : {"aten", "reference"}) {
    const ForcedBackend forced(name.c_str());
    EXPECT_EQ(attention_backend(a.x, a.weights, a.heads).name, name);
  }
  for (const char* name : {"cpu", "cuda", "none"}) {
    const ForcedBackend forced(name);
    EXPECT_THROW(attention_backend(a.x, a.weights, a.heads), std::runtime_error) << name;
    EXPECT_THROW(gated_attention(a.x, a.weights, a.heads), std::runtime_error) << name;
  }
  EXPECT_EQ(attention_backend(a.x, a.weights, a.heads).name, "aten");
}

TEST(GatedAttention, ContextsIgnoreGates) {
  const AttentionCase a(2, 9, 3, 4, 10);
  const auto input = AttentionInput().gate(gate());
  const at::Tensor context = head_contexts(a.x, a.weights, a.heads, input);
  EXPECT_EQ(context.sizes(), at::IntArrayRef({2, 9, 3, 4}));
  EXPECT_TRUE(at::equal(context, head_contexts(a.x, a.weights, a.heads)));
  const at::Tensor scaled = context * gate().view({2, 1, 3, 1});
  EXPECT_TRUE(at::allclose(at::linear(scaled.flatten(2), a.weights.o, a.weights.o_bias),
                           reference_attention(a.x, a.weights, a.heads, input)));
}

}  // namespace
}  // namespace headkit
