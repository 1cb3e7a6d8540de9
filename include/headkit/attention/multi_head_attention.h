#pragma once

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <optional>
#include <ostream>

#include "headkit/attention/gated_attention.h"

namespace headkit {

/// Options of `MultiHeadAttention`:
/// `MultiHeadAttentionOptions(768, 12).bias(false).head_dim(32)`.
struct MultiHeadAttentionOptions {
  MultiHeadAttentionOptions(int64_t embed_dim, int64_t num_heads)
      : embed_dim_(embed_dim), num_heads_(num_heads) {}
  /// D, the width of input and output.
  TORCH_ARG(int64_t, embed_dim);
  /// H; may be 0, as pruning may leave it.
  TORCH_ARG(int64_t, num_heads);
  /// Hkv, heads of K and V; default H, of which it must be a divisor.
  TORCH_ARG(std::optional<int64_t>, num_kv_heads) = std::nullopt;
  /// dh; default D / H, which must then be whole.
  TORCH_ARG(std::optional<int64_t>, head_dim) = std::nullopt;
  /// Whether the four projections have biases.
  TORCH_ARG(bool, bias) = true;
};

/// Multi-head attention with head gates: a module around `gated_attention` with the parameters
/// q_proj [H*dh, D], k_proj, v_proj [Hkv*dh, D] and o_proj [D, H*dh], each with `weight` and
/// `bias`.
class MultiHeadAttentionImpl : public torch::nn::Cloneable<MultiHeadAttentionImpl> {
 public:
  /// Throws std::invalid_argument if the sizes do not fit together.
  explicit MultiHeadAttentionImpl(const MultiHeadAttentionOptions& options);
  MultiHeadAttentionImpl(int64_t embed_dim, int64_t num_heads)
      : MultiHeadAttentionImpl(MultiHeadAttentionOptions(embed_dim, num_heads)) {}

  void reset() override;
  /// Weights uniform (Glorot and Bengio 2010), biases zero.
  void reset_parameters();
  void pretty_print(std::ostream& stream) const override;

  /// x [B, T, D] -> [B, T, D]; see `gated_attention`. The module's num_kv_heads holds unless
  /// `input` names another.
  torch::Tensor forward(const torch::Tensor& x, const AttentionInput& input = {});

  /// The parameters, not copies of them.
  AttentionWeights weights() const;

  MultiHeadAttentionOptions options;
  torch::nn::Linear q_proj = nullptr, k_proj = nullptr, v_proj = nullptr, o_proj = nullptr;
};

/// A shared handle to a MultiHeadAttentionImpl.
///
///     headkit::MultiHeadAttention attention(headkit::MultiHeadAttentionOptions(768, 12));
///     auto y = attention->forward(x, headkit::AttentionInput().gate(gate).key_padding_mask(mask));
TORCH_MODULE(MultiHeadAttention);

}  // namespace headkit
