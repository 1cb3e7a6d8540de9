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
  /// false = closed heads are computed and multiplied by 0, so that their gates get gradients.
  bool skip = true;

  static GateSet from_mask(const HeadMask& mask);

  bool empty() const { return !heads.defined(); }
  at::Tensor layer_gate(int64_t layer) const;            ///< [H], [B, H] or [B, T, H]; or undefined
  at::Tensor layer_dropped_output(int64_t layer) const;  ///< [H, D] or undefined
  /// The rows of these samples, in this order; `index`: int64 [n].
  GateSet select_samples(const at::Tensor& index) const;

  /// Throws std::invalid_argument on a wrong rank, layer or head count, batch, dtype, or a NaN or
  /// infinite gate. `batch` = -1 accepts any batch.
  void check(const char* operation, int64_t batch, int64_t layers, int64_t heads) const;
  std::string to_json() const;
  static GateSet from_json(const std::string& text);
};

}  // namespace headkit
