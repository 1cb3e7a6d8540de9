#include "headkit/attention/multi_head_attention.h"

#include <torch/nn/init.h>

#include <algorithm>

#include "headkit/core/error.h"

namespace headkit {
namespace {

// torch::nn::Linear cannot be made with a size of 0.
torch::nn::Linear make_linear(int64_t in, int64_t out, bool bias) {
  torch::nn::Linear linear(
      torch::nn::LinearOptions(std::max<int64_t>(in, 1), std::max<int64_t>(out, 1)).bias(bias));
  linear->options.in_features(in).out_features(out);
  linear->weight.set_data(linear->weight.slice(0, 0, out).slice(1, 0, in).clone());
  if (bias) linear->bias.set_data(linear->bias.slice(0, 0, out).clone());
  return linear;
}

}  // namespace

MultiHeadAttentionImpl::MultiHeadAttentionImpl(const MultiHeadAttentionOptions& options)
    : options(options) {
  reset();
}

void MultiHeadAttentionImpl::reset() {
  constexpr const char* kName = "MultiHeadAttention";
  const int64_t width = options.embed_dim(), heads = options.num_heads();
  HEADKIT_CHECK(width >= 0 && heads >= 0, kName, "embed_dim and num_heads of at least 0",
                "embed_dim = ", width, ", num_heads = ", heads);
  const int64_t kv_heads = options.num_kv_heads().value_or(heads);
  HEADKIT_CHECK(kv_heads > 0 ? heads % kv_heads == 0 : kv_heads == heads, kName,
                "num_heads divisible by num_kv_heads", "num_kv_heads = ", kv_heads,
                ", num_heads = ", heads);
  options.num_kv_heads(kv_heads);
  if (!options.head_dim()) {
    HEADKIT_CHECK(heads == 0 || width % heads == 0, kName,
                  "embed_dim divisible by num_heads, or head_dim", "embed_dim = ", width,
                  ", num_heads = ", heads);
    options.head_dim(heads == 0 ? 0 : width / heads);
  }
  HEADKIT_CHECK(*options.head_dim() >= 0, kName, "head_dim of at least 0", *options.head_dim());
  const int64_t inner = heads * *options.head_dim(), kv_inner = kv_heads * *options.head_dim();
  q_proj = register_module("q_proj", make_linear(width, inner, options.bias()));
  k_proj = register_module("k_proj", make_linear(width, kv_inner, options.bias()));
  v_proj = register_module("v_proj", make_linear(width, kv_inner, options.bias()));
  o_proj = register_module("o_proj", make_linear(inner, width, options.bias()));
  reset_parameters();
}

void MultiHeadAttentionImpl::reset_parameters() {
  for (const auto& projection : {q_proj, k_proj, v_proj, o_proj}) {
    if (projection->weight.numel() > 0) torch::nn::init::xavier_uniform_(projection->weight);
    if (projection->bias.defined()) torch::nn::init::zeros_(projection->bias);
  }
}

void MultiHeadAttentionImpl::pretty_print(std::ostream& stream) const {
  stream << "headkit::MultiHeadAttention(embed_dim=" << options.embed_dim()
         << ", num_heads=" << options.num_heads() << ", num_kv_heads=" << *options.num_kv_heads()
         << ", head_dim=" << *options.head_dim() << ", bias=" << (options.bias() ? "true" : "false")
         << ")";
}

torch::Tensor MultiHeadAttentionImpl::forward(const torch::Tensor& x, const AttentionInput& input) {
  AttentionInput full = input;
  if (!full.num_kv_heads_) full.num_kv_heads_ = options.num_kv_heads();
  return gated_attention(x, weights(), options.num_heads(), full);
}

AttentionWeights MultiHeadAttentionImpl::weights() const {
  return {q_proj->weight, k_proj->weight, v_proj->weight, o_proj->weight,
          q_proj->bias,   k_proj->bias,   v_proj->bias,   o_proj->bias};
}

}  // namespace headkit
