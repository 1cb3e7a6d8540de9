#include "attention/row_projection.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "operators/float32.h"
#include "operators/rounding.h"

namespace headkit {
namespace {

const float* data_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<float>() : nullptr;
}

}  // namespace

RowProjection::RowProjection(const at::Tensor& x, int64_t head_dim, HeadTransform transform,
                             double scale)
    : table_(kernels::kernel_table()),
      x_(in_float32(x)),
      norm_(in_float32(transform.norm_weight)),
      cosines_(in_float32(transform.rotary_cos)),
      sines_(in_float32(transform.rotary_sin)),
      length_(x.size(1)),
      rows_(x.size(0) * length_),
      width_(x.size(2)),
      head_dim_(head_dim),
      row_(ceil_div(head_dim, table_.vector_length) * table_.vector_length),
      panels_(ceil_div(rows_, table_.panel)),
      norm_eps_(transform.norm_eps),
      scale_(scale) {}

void RowProjection::pack(int64_t panel, float* tokens) const {
  const int64_t first = panel * table_.panel;
  table_.pack_tokens({.x = x_.const_data_ptr<float>() + first * width_,
                      .rows = nullptr,
                      .panel = tokens + first * width_,
                      .row_stride = width_,
                      .tokens = std::min(table_.panel, rows_ - first),
                      .width = width_});
}

void RowProjection::project(const PackedHeads& weights, int64_t head, const float* tokens,
                            int64_t panel, int64_t count, bool transformed, float* to) const {
  const int64_t first = panel * table_.panel;
  table_.project_rows({.tokens = tokens + first * width_,
                       .weights = weights.at(head, kRowPanels),
                       .bias = weights.at(head, kRowBias),
                       .out = to,
                       .num_tokens = count,
                       .width = width_,
                       .head_dim = head_dim_,
                       .scale = 1.0f});
  if (!transformed || (scale_ == 1.0 && !norm_.defined() && !cosines_.defined())) return;
  // Angles that all samples share begin anew with each of them.
  const bool shared = cosines_.defined() && cosines_.size(0) == 1;
  const int64_t width = cosines_.defined() ? cosines_.size(2) : 0;
  for (int64_t row = first; row < first + count;) {
    const int64_t at = shared ? row % length_ : row;
    const int64_t end = std::min(first + count, shared ? row + length_ - at : first + count);
    table_.transform_rows({.rows = to + (row - first) * row_,
                           .norm_weight = data_of(norm_),
                           .cosines = cosines_.defined() ? data_of(cosines_) + at * width : nullptr,
                           .sines = cosines_.defined() ? data_of(sines_) + at * width : nullptr,
                           .row_stride = row_,
                           .angle_stride = width,
                           .num_tokens = end - row,
                           .head_dim = head_dim_,
                           .rotary_dim = width,
                           .norm_eps = static_cast<float>(norm_eps_),
                           .scale = static_cast<float>(scale_)});
    row = end;
  }
}

}  // namespace headkit
