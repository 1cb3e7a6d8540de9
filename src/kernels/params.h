#pragma once

// Arguments of the kernels: pointers, sizes and scalars only. Names of layouts:
//
//   P  tokens of a panel, R  rows of a weight block, VL  floats of a vector: properties of an
//      instruction-set level, see KernelTable
//   token panels   [ceil(T / P)][D][P]   x transposed in groups of P tokens, zero beyond T up to a
//                  full vector
//   rows           [T][dh rounded up to VL]
//   weight blocks  [ceil(n / R)][D][R]   operand A of a product with token panels
//   column panels  [panels of n][D][panel width]   operand B. Panels are as equal as can be and at
//                  most P wide; columns beyond n are zero
//
// Both operands of every product are read along contiguous lanes that way: an input is transposed
// once, a weight when it is packed, and nothing is ever transposed inside a product.

#include <stdint.h>

namespace headkit::kernels {

using Bf16 = uint16_t;

// One panel of tokens, out of rows of x.
struct PackTokensParams {
  const float* x;       // [*, width], rows `row_stride` floats apart
  const int32_t* rows;  // [tokens] rows to take; nullptr = 0, 1, 2, ...
  float* panel;         // [width][P]
  int64_t row_stride;
  int64_t tokens;  // 1..P
  int64_t width;   // D
};

// A matrix M [count][depth] -> weight blocks or column panels.
struct PackMatrixParams {
  const float* from;  // M(i, k) at from[i * stride + k], or at from[k * stride + i] if transposed
  float* packed;      // `block_floats` or `column_panel_floats` floats
  int64_t stride;
  int64_t count;
  int64_t depth;
  bool transposed;
};

// out = scale * (x W^T + bias), of a range of tokens that begins with a panel.
struct ProjectParams {
  const float* tokens;   // token panels
  const float* weights;  // weight blocks for `project_panels`, column panels for `project_rows`
  const float* bias;     // [head_dim], readable up to a full VL for `project_rows`; or nullptr
  float* out;            // token panels of head_dim, or rows
  int64_t num_tokens;
  int64_t width;
  int64_t head_dim;
  float scale;  // 1 for `project_rows`
};

// What happens to projected queries or keys before they meet, in place: RMS norm over dh, rotary
// embedding (dimension i turns together with i + rotary_dim / 2), a factor.
struct TransformParams {
  float* panels;             // token panels of head_dim
  const float* norm_weight;  // [head_dim]; nullptr = no norm
  const float* cosines;      // token panels of rotary_dim; nullptr = no rotary embedding
  const float* sines;        // as cosines
  int64_t num_tokens;
  int64_t head_dim;
  int64_t rotary_dim;
  float norm_eps;
  float scale;
};

// What a query may see, and what is added to its scores.
struct ScoreParams {
  const int32_t* key_position;  // [num_keys] ascending; nullptr = 0, 1, 2, ...
  const float* bias;            // of query t and position s: bias[t * query_stride + s *
                                // key_stride]; nullptr = none
  int64_t bias_query_stride;
  int64_t bias_key_stride;
  int64_t query_offset;  // query t stands at position query_offset + t
  int64_t window;        // positions less than this far away are seen; 0 = any
  bool causal;           // positions up to the query's own are seen
};

// As TransformParams, for rows.
struct TransformRowsParams {
  float* rows;               // [num_tokens][head_dim], `row_stride` floats apart
  const float* norm_weight;  // [head_dim]; nullptr = no norm
  const float* cosines;  // [num_tokens][rotary_dim], `angle_stride` floats apart; nullptr = none
  const float* sines;    // as cosines
  int64_t row_stride;
  int64_t angle_stride;
  int64_t num_tokens;
  int64_t head_dim;
  int64_t rotary_dim;
  float norm_eps;
  float scale;
};

// Context of one head of one sample.
struct AttendParams {
  const float* q;      // token panels, scaled
  const float* k;      // token panels of the keys
  const float* v;      // [num_keys] rows, `v_stride` floats apart, readable up to a full VL
  float* context;      // [head_dim][P] of the first panel
  float* own_context;  // token panels: the context before the gate; or nullptr
  float* softmax;      // [2][P] for each token panel: the largest score, and the sum of exp(score -
                       // largest); -infinity and 0 where nothing is seen; or nullptr
  float* scratch;      // `attend_scratch_floats` floats, 64-byte aligned
  ScoreParams scores;
  int64_t num_tokens;
  int64_t num_keys;
  int64_t head_dim;
  int64_t v_stride;
  int64_t context_stride;  // floats from one panel of the context to the next
  float gate;              // on the context
};

// What each query of a pair does, without its probabilities ever lying in memory. A query that sees
// nothing has log-sum-exp -infinity and zeros.
struct StatisticsParams {
  const float* q;  // of AttendParams, as what follows up to `scores`
  const float* k;
  const float* own_context;
  const float* softmax;
  float* scratch;  // `statistics_scratch_floats` floats, 64-byte aligned
  ScoreParams scores;
  const float* output_gram;  // [head_dim, head_dim]: W_O^T W_O of the head
  float* log_sum_exp;        // [num_tokens] of the scores
  float* entropy;            // [num_tokens] of the probabilities, in nats
  float* largest_weight;     // [num_tokens] of the probabilities
  float* contribution_norm;  // [num_tokens] of gate * context W_O^T
  int64_t num_tokens;
  int64_t num_keys;
  int64_t head_dim;
  float gate;
};

// Some keys as few queries that share a KV head see them, read from rows of `Element` (float or
// Bf16) as they are: what decoding does. Contexts are sums of exp(score - largest) v, for `merge`
// with those of other keys.
template <class Element>
struct AttendRowsParams {
  const float* q;            // [num_queries] rows, `q_stride` floats apart, scaled
  const int32_t* tokens;     // [num_queries] token t of each
  const float* const* bias;  // [num_queries] of each query by position, `bias_key_stride` floats
                             // apart; nullptr = none
  const Element* k;          // rows of dh, `k_stride` elements apart
  const Element* v;          // as k
  const int32_t* key_rows;   // rows of the keys; nullptr = 0, 1, 2, ...
  float* context;            // [num_queries] rows
  float* largest;            // [num_queries] of the scores; -infinity if a query sees nothing
  float* sum;                // [num_queries] of exp(score - largest)
  float* scratch;            // `attend_rows_scratch_floats` floats, 64-byte aligned
  ScoreParams scores;        // whose bias is not used
  int64_t first_key, num_keys;
  int64_t num_queries;
  int64_t head_dim;
  int64_t q_stride;
  int64_t k_stride;
  int64_t v_stride;
};

// Rows of an output: out = start + sum over segments of context_s W_s.
struct SumProjectionsParams {
  const float* context;         // first panel of the rows, [num_segments * head_dim][P]
  const float* const* weights;  // [num_segments] column panels of [width][head_dim], or where
                                // `weight_stride` is set matrices [head_dim][width] as they are
  const float* start;           // [width]: bias and what closed heads add; readable up to a full VL
  float* out;                   // [num_tokens, width], contiguous
  int64_t num_segments;
  int64_t num_tokens;
  int64_t width;
  int64_t head_dim;
  int64_t context_stride;  // floats from one panel of the context to the next
  int64_t part;            // this part of the columns, 0 <= part < parts; whole panels, so a part
                           // may be empty
  int64_t parts;
  bool add = false;             // to what `out` holds: the sum over earlier segments
  bool finish = true;           // adds `start`: no further segments follow
  int64_t weight_stride = 0;    // floats from one row of a matrix to the next; the width is then a
                                // multiple of VL
  const float* next = nullptr;  // what will be read after this call: comes closer while it runs
  int64_t next_floats = 0;
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

// What a forward keeps for its backward: inputs of the activation, of all neurons of a layer, and
// of what multiplies it.
struct KeptRows {
  float* in;            // row r at in + rows[r] * stride; nullptr = nothing is kept
  float* up;            // as in, nullptr unless gated
  const int32_t* rows;  // nullptr = 0, 1, 2, ...
  int64_t stride;
  int64_t neurons;  // of the layer
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
  bool gated;          // the layer has an up weight
  KeptRows kept = {};  // written by `feed_forward_hidden`, read by its backward
};

// Backward of `feed_forward_hidden`.
struct HiddenBackwardParams {
  HiddenParams forward;          // hidden and its stride are not used; scratch of
                                 // `hidden_backward_scratch_floats`
  const float* output_gradient;  // token panels of dOut
  const float* out_blocks;       // weight blocks of W_out^T [block_size][width], one matrix of
                                 // `block_floats` for each block of the layer
  float* in_panels;              // gradients of what the activation is applied to:
                                 // [num_blocks * block_size][P] of the first token panel
  float* up_panels;              // the same for what multiplies it; nullptr unless gated
  float* in_rows;                // in_panels as rows of num_blocks * block_size
  float* up_rows;                // as in_rows
  float* hidden_rows;            // scale * hidden, as in_rows
  float* gate_sums;              // [num_blocks][gate_stride] of each row: <dOut W_out, hidden>
  int64_t panel_stride;          // floats from one token panel of the gradients to the next
  int64_t gate_stride;           // at least the rows rounded up to P
};

// Keys and values of one head as the backward reads them, beside k in panels and v in rows.
struct PrepareKeysParams {
  const float* k;   // token panels
  const float* v;   // rows
  float* k_rows;    // [num_keys] rows
  float* v_panels;  // token panels
  int64_t num_keys;
  int64_t head_dim;
};

// Backward of `attend`. With `of_scores` false only the gate's gradient and the gated context are
// computed, which is all that the gate and W_O want.
struct AttendBackwardParams {
  const float* q;         // token panels, scaled
  const float* k;         // token panels of the keys
  const float* k_rows;    // see PrepareKeysParams
  const float* v_panels;  // see PrepareKeysParams
  const float* context;   // token panels: what `attend` gave as `own_context`
  const float* softmax;   // what `attend` gave
  const float* u;         // token panels: gradient of the gated context, dOut W_O
  float* dq;              // [head_dim][P] of the first panel: of q before its factor `scale`
  float* context_rows;    // gate * context, in rows
  float* dk;              // [num_keys] rows, added to
  float* dv;              // as dk
  float* d_scores;        // [num_keys][P] for each token panel: kept; or nullptr
  float* gate_gradient;   // of this pair
  float* scratch;         // `attend_backward_scratch_floats` floats, 64-byte aligned
  ScoreParams scores;
  int64_t num_tokens;
  int64_t num_keys;
  int64_t head_dim;
  int64_t dq_stride;  // floats from one panel of dq to the next
  float gate;
  float scale;
  bool of_scores;
};

// Backward of `transform`, in place: of what it gave before its factor `scale` -> of what it took.
struct TransformBackwardParams {
  float* panels;           // [head_dim][P] of the first panel, zero beyond the tokens
  const float* projected;  // token panels: what `transform` took; nullptr without a norm
  const float* norm_weight;
  const float* cosines;
  const float* sines;
  float* norm_gradient;  // [head_dim][VL], added to: sums over some of the tokens each; nullptr
                         // without a norm
  int64_t num_tokens;
  int64_t head_dim;
  int64_t rotary_dim;
  int64_t panel_stride;  // floats from one panel to the next
  float norm_eps;
};

// Panels [head_dim][P] and rows of the same tokens, either way.
struct TurnPanelsParams {
  float* panels;
  float* rows;
  int64_t num_tokens;
  int64_t head_dim;
  int64_t panel_stride;  // floats from one panel to the next
};

// Adds the gradient of one pair's scores to that of a bias.
struct BiasGradientParams {
  const float* d_scores;        // see AttendBackwardParams
  const int32_t* key_position;  // as in ScoreParams
  double* out;                  // as the bias in ScoreParams, with its strides
  float* scratch;               // `bias_gradient_scratch_floats` floats
  int64_t query_stride;
  int64_t key_stride;
  int64_t num_tokens;
  int64_t num_keys;
};

// Rows of keys -> rows of tokens, zero where a token is no key, and their panels.
struct PlaceKeysParams {
  const float* of_keys;         // [num_keys] rows
  const int32_t* key_position;  // [num_keys] ascending tokens; nullptr = 0, 1, 2, ...
  float* rows;                  // [num_tokens] rows
  float* panels;                // [head_dim][P] of the first token panel
  int64_t num_keys;
  int64_t num_tokens;
  int64_t head_dim;
  int64_t panel_stride;  // floats from one token panel to the next
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
