#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "headkit/core/gate_set.h"
#include "headkit/core/head_mask.h"

namespace headkit {

/// One level of a ladder: the heads and blocks of 32 neurons that run, and what stands in for those
/// that do not. A plain value; `check` says whether its parts fit each other.
struct Rung {
  HeadMask heads = {};
  at::Tensor blocks = {};          ///< bool [L, N], true = the block runs; undefined = all run
  at::Tensor dropped_output = {};  ///< [L, H, D], what a closed head adds; undefined = nothing
  at::Tensor dropped_blocks = {};  ///< [L, N, D], what a closed block adds; undefined = nothing

  /// Gates [L, H] and, with `blocks`, [L, N], in dtype and on the device of hidden states.
  GateSet gates(const at::Tensor& hidden) const;
  /// Whether both compute the same in a layer: units, and what stands in for closed ones.
  bool equals_in(int64_t layer, const Rung& other) const;
  /// What `other` runs and this one does not, for messages; empty = nothing.
  std::string missing_of(const Rung& other) const;

  /// Throws std::invalid_argument unless there is a mask and the rest fits it.
  void check(const char* operation) const;
  /// {"heads": mask, "blocks": [[block, ...] per layer] or null, ...}: bit for bit.
  std::string to_json() const;
  static Rung from_json(const std::string& text);
};

}  // namespace headkit
