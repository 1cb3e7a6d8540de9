#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "headkit/core/head_mask.h"

namespace headkit {

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

  static GateSet from_mask(const HeadMask& mask);

  /// Whether nothing is gated.
  bool empty() const { return !heads.defined() && !blocks.defined(); }
  at::Tensor layer_gate(int64_t layer) const;            ///< [H], [B, H] or [B, T, H]; or undefined
  at::Tensor layer_dropped_output(int64_t layer) const;  ///< [H, D] or undefined
  /// The rows of these samples, in this order; `index`: int64 [n].
  GateSet select_samples(const at::Tensor& index) const;

  /// Throws std::invalid_argument on a wrong rank, layer or head count, batch, dtype, or a NaN or
  /// infinite gate. `batch` = -1 accepts any batch.
  void check(const char* operation, int64_t batch, int64_t layers, int64_t heads) const;
  /// The same for the gates of blocks of neurons.
  void check_blocks(const char* operation, int64_t batch, int64_t layers, int64_t count) const;
  std::string to_json() const;
  static GateSet from_json(const std::string& text);
};

}  // namespace headkit
