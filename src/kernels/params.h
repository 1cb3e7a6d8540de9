#pragma once

// Arguments of the kernels: pointers, sizes and scalars only. Names of layouts:
//
//   P  tokens of a panel, R  rows of a weight block, VL  floats of a vector: properties of an
//      instruction-set level, see KernelTable
//   token panels   [ceil(T / P)][D][P]   x transposed in groups of P tokens, zero beyond T
//   context        [ceil(T / P)][n * dh][P]   outputs of the n heads of a sample, transposed alike
//
// Both operands of every product are read along contiguous lanes that way: an input is transposed
// once, a weight when it is packed, and nothing is ever transposed inside a product.

#include <stdint.h>

namespace headkit::kernels {

// One panel of tokens, out of rows of x.
struct PackTokensParams {
  const float* x;       // [*, width], rows `row_stride` floats apart
  const int32_t* rows;  // [tokens] rows to take; nullptr = 0, 1, 2, ...
  float* panel;         // [width][P]
  int64_t row_stride;
  int64_t tokens;  // 1..P
  int64_t width;   // D
};

// Weights of one head, in PyTorch's layout, y = x W^T + b.
struct PackHeadParams {
  const float* q;       // [head_dim, width], rows `width` floats apart
  const float* k;       // as q
  const float* v;       // as q
  const float* o;       // [width, head_dim], rows `o_stride` floats apart
  const float* q_bias;  // [head_dim] or nullptr
  const float* k_bias;  // as q_bias
  const float* v_bias;  // as q_bias
  float* packed;        // `packed_head_floats` floats, 64-byte aligned
  int64_t width;
  int64_t head_dim;
  int64_t o_stride;
};

// One pair: context of one head of one sample.
struct PairParams {
  const float* tokens;          // token panels of the queries
  const float* keys;            // token panels of the keys; may be `tokens`
  const int32_t* key_position;  // causal: [num_keys] ascending tokens of the keys; else nullptr
  const float* head;            // packed weights of the head
  float* context;               // [head_dim][P] of the first panel
  float* scratch;               // `pair_scratch_floats` floats, 64-byte aligned
  int64_t num_tokens;
  int64_t num_keys;
  int64_t width;
  int64_t head_dim;
  int64_t context_stride;  // floats from one panel of the context to the next
  float scale;             // on the scores
  float gate;              // on the context
  bool causal;             // query t sees keys at positions <= t
};

// Rows of the output of one sample: out = start + sum over its heads of context W_O^T.
struct OutputParams {
  const float* context;       // first panel of the row block, [num_heads * head_dim][P]
  const float* packed;        // packed weights of all heads of the layer
  const int32_t* head_index;  // [num_heads] heads of the sample, in the order of the context
  const float* start;         // [width]: bias and what skipped heads add; readable up to a full VL
  float* out;                 // [num_tokens, width], contiguous
  int64_t num_heads;
  int64_t num_tokens;
  int64_t width;
  int64_t head_dim;
  int64_t context_stride;
  int64_t
      part;  // this part of the columns, 0 <= part < parts; whole panels, so a part may be empty
  int64_t parts;
};

}  // namespace headkit::kernels
