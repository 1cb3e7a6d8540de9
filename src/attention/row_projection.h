#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "attention/head_transform.h"
#include "attention/packed_weights.h"
#include "kernels/dispatch.h"

namespace headkit {

/// Queries, keys or values of a whole batch in rows: the tokens of all samples, one after the
/// other, fill token panels together, however few a sample has.
class RowProjection {
 public:
  /// x [B, T, D]; `transform` and `scale` are applied to what is projected.
  RowProjection(const at::Tensor& x, int64_t head_dim, HeadTransform transform, double scale);

  int64_t rows() const { return rows_; }
  int64_t panels() const { return panels_; }
  /// Floats of a row that `project` writes: dh, rounded up to full vectors.
  int64_t row_floats() const { return row_; }
  /// Floats of the token panels, for `pack` and `project`.
  int64_t token_floats() const { return panels_ * table_.panel * width_; }
  void pack(int64_t panel, float* tokens) const;
  /// Rows of one head from the start of `panel`; `weights` of `packed_rows`.
  void project(const PackedHeads& weights, int64_t head, const float* tokens, int64_t panel,
               int64_t count, bool transformed, float* to) const;

 private:
  const kernels::KernelTable& table_;
  const at::Tensor x_, norm_, cosines_, sines_;
  const int64_t length_, rows_, width_, head_dim_, row_, panels_;
  const double norm_eps_, scale_;
};

}  // namespace headkit
