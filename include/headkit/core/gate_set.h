#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "headkit/core/head_mask.h"

namespace headkit {

/// Neurons of a block that one gate of `GateSet::blocks` opens or closes.
inline constexpr int64_t kNeuronBlock = 32;

/// Gates of a whole model for one batch, in original head indices.
struct GateSet {
  /// [L, H], [B, L, H] or [B, L, T, H]; floating point (float32, or float64 for a float64 model).
  /// 1 = the head as it is, 0 = the head does not run. Undefined = all heads run.
  at::Tensor heads;
  /// What a closed head adds instead of nothing, [L, H, D]; undefined = nothing. A gate g gives
  /// g * output + (1 - g) * dropped_output.
  at::Tensor dropped_output;
  /// Gates of blocks of 32 neurons, [L, N] or [B, L, N], L = layers with a feed-forward block, same
  /// dtypes. Undefined = all blocks run.
  at::Tensor blocks = {};
  /// What a closed block adds instead of nothing, [L, N, D]; undefined = nothing.
  at::Tensor dropped_blocks = {};
  /// false = closed heads and blocks are computed and multiplied by 0, so that their gates get
  /// gradients.
  bool skip = true;

  /// Gates of neurons, [L, F] or [B, L, F], L as for `blocks`: factors of what the activation
  /// gives, before the second linear map. Undefined = all run.
  at::Tensor neurons = {};
  /// Gates of whole attention blocks, [L] or [B, L], L as for `heads`: factors of what a block adds
  /// to the residual stream, its output bias included (all heads at 0 leave the bias).
  at::Tensor attention_sublayers = {};
  /// The same of feed-forward blocks, L as for `blocks`.
  at::Tensor feed_forward_sublayers = {};
  /// Gates of the dimensions of the residual stream, [D]: factors of all that is written to it or
  /// read from it; norms take their statistics over the open ones. Undefined = all are open.
  at::Tensor hidden = {};

  static GateSet from_mask(const HeadMask& mask);

  /// Whether nothing is gated.
  bool empty() const {
    return !heads.defined() && !blocks.defined() && !attention_sublayers.defined() &&
           !hidden.defined() && !gates_feed_forward();
  }
  /// Whether neurons or feed-forward blocks are gated.
  bool gates_feed_forward() const { return neurons.defined() || feed_forward_sublayers.defined(); }
  at::Tensor layer_gate(int64_t layer) const;            ///< [H], [B, H] or [B, T, H]; or undefined
  at::Tensor layer_dropped_output(int64_t layer) const;  ///< [H, D] or undefined
  at::Tensor layer_neurons(int64_t layer) const;         ///< [F] or [B, F]; or undefined
  /// Factor of all that an attention block adds, broadcastable to [B, T, D]; or undefined.
  at::Tensor attention_factor(int64_t layer) const;
  at::Tensor feed_forward_factor(int64_t layer) const;  ///< the same of a feed-forward block
  /// The rows of these samples, in this order; `index`: int64 [n].
  GateSet select_samples(const at::Tensor& index) const;

  /// Throws std::invalid_argument on gates of heads or attention blocks of a wrong rank, layer or
  /// head count, batch or dtype, or a NaN or infinite gate. `batch` = -1 accepts any batch.
  void check(const char* operation, int64_t batch, int64_t layers, int64_t heads) const;
  /// The same for the gates of blocks of neurons.
  void check_blocks(const char* operation, int64_t batch, int64_t layers, int64_t count) const;
  /// The same for those of neurons and of feed-forward blocks.
  void check_feed_forward(const char* operation, int64_t batch, int64_t layers,
                          int64_t count) const;
  /// The same for those of the residual stream.
  void check_hidden(const char* operation, int64_t model_dim) const;
  std::string to_json() const;
  static GateSet from_json(const std::string& text);
};

}  // namespace headkit
