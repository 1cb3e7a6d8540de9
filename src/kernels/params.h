#pragma once

// Arguments of the kernels: pointers, sizes and scalars only. Names of layouts:
//
//   P  tokens of a panel, R  rows of a weight block, VL  floats of a vector: properties of an
//      instruction-set level, see KernelTable
//   token panels   [ceil(T / P)][D][P]   x transposed in groups of P tokens, zero beyond T
//   context        [ceil(T / P)][n * dh][P]   outputs of the n heads of a sample, transposed alike
//   column panels  [panels of D][T][panel width]   rows as they are, cut into groups of columns;
//   the
//                  columns beyond D are zero. Panels are as equal as can be and at most P wide
//   rows           [T][dh rounded up to VL]
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
  bool add = false;    // to what `out` holds: the sum over earlier heads
  bool finish = true;  // adds `start`: no further heads follow
};

enum class Activation : int8_t { kGelu, kGeluTanh, kRelu, kSilu };

// Weights of one block of neurons, in PyTorch's layout, y = x W^T + b.
struct PackBlockParams {
  const float* in;       // [neurons, width], rows `width` floats apart
  const float* up;       // as in, or nullptr
  const float* out;      // [width, neurons], rows `out_stride` floats apart
  const float* in_bias;  // [neurons] or nullptr
  const float* up_bias;  // as in_bias
  float* packed;         // `packed_block_floats` floats, 64-byte aligned
  int64_t width;
  int64_t neurons;     // 1..block_size; fewer in the last block of a layer
  int64_t block_size;  // neurons of a block
  int64_t out_stride;
};

// Outputs of the neurons of some blocks for some rows: scale * act(x W_in^T + b) [* (x W_up^T +
// b)].
struct HiddenParams {
  const float* tokens;         // token panels of the rows
  const float* packed;         // packed weights of all blocks of the layer
  const int32_t* block_index;  // [num_blocks]
  const float* scale;          // [num_blocks]
  float* hidden;               // [num_blocks * block_size][P] of the first panel
  float* scratch;              // `hidden_scratch_floats` floats, 64-byte aligned
  int64_t num_blocks;
  int64_t num_tokens;
  int64_t width;
  int64_t block_size;
  int64_t hidden_stride;  // floats from one token panel of `hidden` to the next
  Activation activation;
  bool gated;  // the layer has an up weight
};

// Rows of the output of a feed-forward block: as OutputParams, whose heads are blocks of neurons
// and whose context is what HiddenParams gave.
struct FeedForwardOutputParams {
  OutputParams output;
  bool gated;
};

// Column panels of the rows of x.
struct PackColumnsParams {
  const float* x;  // [rows, width], rows `row_stride` floats apart
  float* panels;   // `packed_columns_floats` floats
  int64_t row_stride;
  int64_t rows;
  int64_t width;
};

// Backward of one pair. With `scores` false only the gate's gradient and the context are computed,
// which is all that the gate and W_O want.
struct PairBackwardParams {
  // As in the forward, but for the context, which is not used, the scratch, which has
  // `pair_backward_scratch_floats`, and key_position, which is always given.
  PairParams pair;
  const float* output_gradient;  // token panels of the gradient of the output
  const float* head_backward;    // what `pack_head_backward` packed of the head
  float* panels;                 // gradients of q, k, v: [3 * head_dim][P] of the first token panel
  float* rows;            // gradients of q, k, v, then gate * context: [4] rows of all tokens
  float* gate_gradient;   // of this pair
  int64_t panel_stride;   // floats from one token panel of `panels` to the next
  int64_t matrix_stride;  // floats from one of the four `rows` to the next
  bool scores;
};

// Gradient of one weight matrix of one head: the sum over its samples of rows^T x.
struct WeightGradientParams {
  const float* rows;            // rows of its samples, one after the other
  const float* columns;         // column panels of x of every sample
  const int32_t* sample_index;  // [num_samples] the head's samples, in the order of `rows`
  float* out;                   // [head_dim, width], or transposed: [width, head_dim]
  float* bias;     // [head_dim] column sums of the rows, of part 0; nullptr if not wanted
  float* scratch;  // `weight_gradient_scratch_floats` floats, 64-byte aligned
  int64_t num_samples;
  int64_t num_tokens;
  int64_t width;
  int64_t head_dim;
  int64_t sample_stride;  // floats from the column panels of one sample to those of the next
  int64_t out_stride;     // floats from one row of `out` to the next
  bool transposed;
  bool add;      // to what `out` and `bias` hold
  int64_t part;  // this part of the columns, 0 <= part < parts; whole panels, so it may be empty
  int64_t parts;
};

}  // namespace headkit::kernels
