#pragma once

#include "kernels/cpu/tile.h"
#include "kernels/params.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Packed weights of one head, in this order:
//   q, k   [ceil(dh / R)][D][R]            blocks of R rows, transposed: operand A
//   v      [panels of dh][D][panel width]  operand B
//   o      [panels of D][dh][panel width]  operand B
//   q_bias, k_bias [dh rounded up to R], v_bias [dh rounded up to VL]
// Rows and columns beyond the weights are 0.
struct PackedHead {
  int64_t width, head_dim;
  ColumnPanels v_panels, o_panels;
  int64_t q, k, v, o, q_bias, k_bias, v_bias, floats;  // offsets, and the total

  PackedHead(int64_t width_, int64_t head_dim_)
      : width(width_), head_dim(head_dim_), v_panels(head_dim_), o_panels(width_) {
    const int64_t rows = ceil_div(head_dim, kWeightRows) * kWeightRows;
    int64_t at = 0;
    const auto place = [&at](int64_t count) {
      const int64_t offset = at;
      at += ceil_div(count, 16) * 16;
      return offset;
    };
    q = place(rows * width);
    k = place(rows * width);
    v = place(v_panels.panels * v_panels.width() * width);
    o = place(o_panels.panels * o_panels.width() * head_dim);
    q_bias = place(rows);
    k_bias = place(rows);
    v_bias = place(ceil_div(head_dim, kLanes) * kLanes);
    floats = at;
  }
};

int64_t packed_head_floats(int64_t width, int64_t head_dim) {
  return PackedHead(width, head_dim).floats;
}

// rows[i][j] -> out[j * out_stride + i] for `count` rows (the others 0) of `length` floats; `lanes`
// values are written for each j. `row(i)` points at row i.
template <class Row>
HEADKIT_INLINE void pack_transposed(const Row& row, int64_t count, int64_t lanes, int64_t length,
                                    float* out, int64_t out_stride) {
  const float zeros[kLanes] = {};
  for (int64_t first = 0; first < lanes; first += kLanes) {
    float* to = out + first;
    const int64_t used = lanes - first < kLanes ? lanes - first : kLanes;
    const float* rows[kLanes];
    int64_t j = 0;
    for (; j + kLanes <= length; j += kLanes) {
      for (int64_t i = 0; i < kLanes; ++i) {
        rows[i] = i < used && first + i < count ? row(first + i) + j : zeros;
      }
      if (used == kLanes) {
        transpose_square(rows, to + j * out_stride, out_stride);
        continue;
      }
      float square[kLanes * kLanes];
      transpose_square(rows, square, kLanes);
      for (int64_t jj = 0; jj < kLanes; ++jj) {
        for (int64_t i = 0; i < used; ++i) to[(j + jj) * out_stride + i] = square[jj * kLanes + i];
      }
    }
    for (; j < length; ++j) {
      for (int64_t i = 0; i < used; ++i) {
        to[j * out_stride + i] = first + i < count ? row(first + i)[j] : 0.0f;
      }
    }
  }
}

void pack_tokens(const PackTokensParams& p) {
  const auto row = [&p](int64_t i) {
    return p.x + (p.rows == nullptr ? i : static_cast<int64_t>(p.rows[i])) * p.row_stride;
  };
  const int64_t lanes = ceil_div(p.tokens, kLanes) * kLanes;
  pack_transposed(row, p.tokens, lanes, p.width, p.panel, kPanel);
}

HEADKIT_INLINE void pack_blocks(const float* w, int64_t width, int64_t head_dim, float* out) {
  for (int64_t first = 0; first < head_dim; first += kWeightRows) {
    const int64_t count = head_dim - first < kWeightRows ? head_dim - first : kWeightRows;
    const auto row = [&](int64_t i) { return w + (first + i) * width; };
    pack_transposed(row, count, kWeightRows, width, out + first * width, kWeightRows);
  }
}

// Panels of the columns of W^T, for W [columns, depth] with rows `stride` floats apart.
HEADKIT_INLINE void pack_panels(const float* w, int64_t stride, int64_t columns, int64_t depth,
                                const ColumnPanels& panels, float* out) {
  for (int64_t panel = 0; panel < panels.panels; ++panel) {
    const int64_t first = panel * panels.width();
    const auto row = [&](int64_t i) { return w + (first + i) * stride; };
    pack_transposed(row, columns - first, panels.width(), depth, out + first * depth,
                    panels.width());
  }
}

HEADKIT_INLINE void pack_bias(const float* bias, int64_t count, int64_t padded, float* out) {
  for (int64_t i = 0; i < padded; ++i) out[i] = bias != nullptr && i < count ? bias[i] : 0.0f;
}

void pack_head(const PackHeadParams& p) {
  const PackedHead at(p.width, p.head_dim);
  const int64_t rows = ceil_div(p.head_dim, kWeightRows) * kWeightRows;
  pack_blocks(p.q, p.width, p.head_dim, p.packed + at.q);
  pack_blocks(p.k, p.width, p.head_dim, p.packed + at.k);
  pack_panels(p.v, p.width, p.head_dim, p.width, at.v_panels, p.packed + at.v);
  pack_panels(p.o, p.o_stride, p.width, p.head_dim, at.o_panels, p.packed + at.o);
  pack_bias(p.q_bias, p.head_dim, rows, p.packed + at.q_bias);
  pack_bias(p.k_bias, p.head_dim, rows, p.packed + at.k_bias);
  pack_bias(p.v_bias, p.head_dim, ceil_div(p.head_dim, kLanes) * kLanes, p.packed + at.v_bias);
}

// What the backward wants of the weights of one head beside PackedHead:
//   q, k, v  [panels of D][dh][panel width]  operand B
//   o        [ceil(dh / R)][D][R]            operand A
struct PackedHeadBackward {
  int64_t matrix;  // floats of one of q, k, v, which follow each other
  int64_t o, floats;

  PackedHeadBackward(int64_t width, int64_t head_dim) {
    const ColumnPanels panels(width);
    matrix = ceil_div(panels.panels * panels.width() * head_dim, 16) * 16;
    o = 3 * matrix;
    floats = o + ceil_div(ceil_div(head_dim, kWeightRows) * kWeightRows * width, 16) * 16;
  }
};

int64_t packed_head_backward_floats(int64_t width, int64_t head_dim) {
  return PackedHeadBackward(width, head_dim).floats;
}

int64_t packed_columns_floats(int64_t rows, int64_t width) {
  const ColumnPanels panels(width);
  return ceil_div(panels.panels * panels.width() * rows, 16) * 16;
}

void pack_columns(const PackColumnsParams& p) {
  const ColumnPanels panels(p.width);
  for (int64_t panel = 0; panel < panels.panels; ++panel) {
    const int64_t column = panel * panels.width();
    const int64_t used = p.width - column < panels.width() ? p.width - column : panels.width();
    float* out = p.panels + column * p.rows;
    for (int64_t i = 0; i < p.rows; ++i, out += panels.width()) {
      const float* row = p.x + i * p.row_stride + column;
      int64_t j = 0;
      for (; j + kLanes <= used; j += kLanes) store(out + j, load(row + j));
      for (; j < used; ++j) out[j] = row[j];
      for (; j < panels.width(); ++j) out[j] = 0.0f;
    }
  }
}

void pack_head_backward(const PackHeadParams& p) {
  const PackedHeadBackward at(p.width, p.head_dim);
  const float* weights[3] = {p.q, p.k, p.v};
  for (int i = 0; i < 3; ++i) {
    pack_columns({.x = weights[i],
                  .panels = p.packed + i * at.matrix,
                  .row_stride = p.width,
                  .rows = p.head_dim,
                  .width = p.width});
  }
  for (int64_t first = 0; first < p.head_dim; first += kWeightRows) {
    const int64_t count = p.head_dim - first < kWeightRows ? p.head_dim - first : kWeightRows;
    float* out = p.packed + at.o + first * p.width;
    for (int64_t column = 0; column < p.width; ++column, out += kWeightRows) {
      for (int64_t i = 0; i < kWeightRows; ++i) {
        out[i] = i < count ? p.o[column * p.o_stride + first + i] : 0.0f;
      }
    }
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
