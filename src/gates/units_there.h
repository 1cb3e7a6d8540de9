#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "headkit/core/flops.h"
#include "headkit/core/head_layout.h"
#include "headkit/core/head_mask.h"
#include "headkit/gates/rung.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// Units of a model that are physically there, for counting what runs.
class UnitsThere {
 public:
  explicit UnitsThere(GatedModel& model);

  const HeadLayout& layout() const { return layout_; }
  const HeadMask& heads() const { return heads_; }
  /// Neurons of each block of 32, int64 [L, N], L = layers with a feed-forward block. Of a model
  /// that does not show them, those of its layout.
  const at::Tensor& neurons() const { return neurons_; }
  /// Neurons of the original, over all layers.
  int64_t original_neurons() const { return original_neurons_; }

  /// What runs of layers first .. last-1 where `heads` bool [L, H] and `blocks` bool [L, N]
  /// (undefined = all) are open.
  UnitCounts count(const at::Tensor& heads, const at::Tensor& blocks, int64_t first,
                   int64_t last) const;
  /// The same of all layers for each sample: `heads` bool [B, L, H], `blocks` bool [B, L, N] or
  /// undefined; int64 [B] each.
  struct Counts {
    at::Tensor heads, kv_heads, neurons;
  };
  Counts count_samples(const at::Tensor& heads, const at::Tensor& blocks) const;

 private:
  HeadLayout layout_;
  HeadMask heads_;
  at::Tensor neurons_;
  int64_t original_neurons_ = 0;
};

/// Throws std::invalid_argument unless the rung is one of a model of this size.
void check_rung(const char* operation, GatedModel& model, const Rung& rung);

}  // namespace headkit
