#pragma once

// Arguments of the bfloat16 kernels, in the terms of params.h. What they multiply are pairs: two
// bfloat16 that follow each other along the depth of a product, the first in the low half of 32
// bits. An odd depth ends with a pair whose second half is 0. So every layout of params.h holds
// with pairs for floats and half the depth:
//
//   token panels   [ceil(T / P)][ceil(D / 2)][P]
//   pair rows      [ceil(T / 2)][dh rounded up to VL]   two tokens a row: values, whose depth is
//   keys context        [ceil(T / P)][n * ceil(dh / 2)][P] weight blocks  [ceil(n / R)][ceil(D /
//   2)][R] column panels  [panels of n][ceil(D / 2)][panel width]
//
// Sums are float32; each kernel rounds once, to nearest even, when it writes what the next one
// reads.

#include <stdint.h>

#include "kernels/params.h"

namespace headkit::kernels {

using Bf16Pair = uint32_t;

// One panel of tokens, out of rows of x.
struct Bf16PackTokensParams {
  const Bf16* x;        // [*, width], rows `row_stride` elements apart
  const int32_t* rows;  // [tokens] rows to take; nullptr = 0, 1, 2, ...
  Bf16Pair* panel;      // [ceil(width / 2)][P]
  int64_t row_stride;
  int64_t tokens;  // 1..P
  int64_t width;   // D
};

// A matrix M [count][depth] -> weight blocks or column panels.
struct Bf16PackMatrixParams {
  const Bf16* from;  // M(i, k) at from[i * stride + k]
  Bf16Pair* packed;  // `block_pairs` or `column_panel_pairs` pairs
  int64_t stride;
  int64_t count;
  int64_t depth;
};

// out = scale * (x W^T + bias), of a range of tokens that begins with a panel.
struct Bf16ProjectParams {
  const Bf16Pair* tokens;   // token panels
  const Bf16Pair* weights;  // weight blocks for `project_panels`, column panels for `project_rows`
  const float* bias;        // [head_dim], readable up to a full VL for `project_rows`; or nullptr
  Bf16Pair* out;            // token panels of head_dim, or pair rows
  int64_t num_tokens;
  int64_t width;
  int64_t head_dim;
  float scale;            // 1 for `project_rows`
  float* wide = nullptr;  // for `project_panels`: float32 panels instead of `out`, not rounded yet
};

// Float32 token panels of head_dim, rounded.
struct Bf16RoundParams {
  const float* panels;
  Bf16Pair* out;  // token panels
  int64_t num_tokens;
  int64_t head_dim;
};

// Context of one head of one sample.
struct Bf16AttendParams {
  const Bf16Pair* q;  // token panels, scaled, and by log2(e): the softmax is of base 2
  const Bf16Pair* k;  // token panels of the keys
  const Bf16Pair* v;  // pair rows of the keys
  Bf16Pair* context;  // [ceil(head_dim / 2)][P] of the first panel
  float* scratch;     // `attend_scratch_floats` floats, 64-byte aligned
  ScoreParams scores;
  int64_t num_tokens;
  int64_t num_keys;
  int64_t head_dim;
  int64_t context_stride;  // pairs from one panel of the context to the next
  float gate;              // on the context
};

// Rows of an output: out = start + sum over segments of context_s W_s.
struct Bf16SumProjectionsParams {
  const Bf16Pair* context;  // first panel of the rows, [num_segments * ceil(head_dim / 2)][P]
  const Bf16Pair* const* weights;  // [num_segments] column panels of [width][head_dim]
  const float* start;  // [width]: bias and what closed heads add; readable up to a full VL
  Bf16* out;           // [num_tokens, width], contiguous
  int64_t num_segments;
  int64_t num_tokens;
  int64_t width;
  int64_t head_dim;
  int64_t context_stride;  // pairs from one panel of the context to the next
  int64_t part;            // this part of the columns, 0 <= part < parts; whole panels, so a part
                           // may be empty
  int64_t parts;
  bool add = false;       // to what `sums` holds: the sum over earlier segments
  bool finish = true;     // adds `start` and writes `out`: no further segments follow
  float* sums = nullptr;  // [num_tokens, width], where earlier or further segments are
};

// As PackBlockParams, HiddenParams.
struct Bf16PackBlockParams {
  const Bf16* in;
  const Bf16* up;
  const Bf16* out;
  const float* in_bias;
  const float* up_bias;
  Bf16Pair* packed;  // `packed_block_floats` pairs, 64-byte aligned
  int64_t width;
  int64_t neurons;
  int64_t block_size;
  int64_t out_stride;
};
struct Bf16HiddenParams {
  const Bf16Pair* tokens;
  const Bf16Pair* packed;
  const int32_t* block_index;
  const float* scale;
  Bf16Pair* hidden;  // [num_blocks * ceil(block_size / 2)][P] of the first panel
  float* scratch;
  int64_t num_blocks;
  int64_t num_tokens;
  int64_t width;
  int64_t block_size;
  int64_t hidden_stride;  // pairs from one token panel of `hidden` to the next
  Activation activation;
  bool gated;
  KeptRows kept = {};
};

// The bfloat16 kernels of a level that multiplies bfloat16 natively.
struct Bf16Kernels {
  int64_t (*block_pairs)(int64_t count, int64_t depth);
  int64_t (*column_panel_pairs)(int64_t count, int64_t depth);
  void (*pack_blocks)(const Bf16PackMatrixParams&);
  void (*pack_column_panels)(const Bf16PackMatrixParams&);
  void (*pack_tokens)(const Bf16PackTokensParams&);
  void (*project_panels)(const Bf16ProjectParams&);
  void (*project_rows)(const Bf16ProjectParams&);
  void (*round_panels)(const Bf16RoundParams&);
  int64_t (*attend_scratch_floats)(int64_t num_keys, int64_t head_dim);
  void (*attend)(const Bf16AttendParams&);
  void (*sum_projections)(const Bf16SumProjectionsParams&);

  // Feed-forward. A pair is as long as a float: sizes of packed blocks are those of either.
  int64_t (*packed_block_floats)(int64_t width, int64_t block_size, bool gated);
  int64_t (*packed_block_output)(int64_t width, int64_t block_size, bool gated);
  int64_t (*hidden_scratch_floats)(int64_t block_size);
  void (*pack_block)(const Bf16PackBlockParams&);
  void (*feed_forward_hidden)(const Bf16HiddenParams&);

  // Runs independent multiply-adds in registers and returns how many FLOPs they were.
  double (*probe)(int64_t iterations);
};

}  // namespace headkit::kernels
