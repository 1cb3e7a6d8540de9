#pragma once

#include "kernels/params.h"

namespace headkit::kernels {

// The kernels of one instruction-set level. Every output element is accumulated by one chain of
// multiply-adds in a fixed order, so a result depends on the level, but on nothing else: not on the
// other samples, the padding or the thread.
struct KernelTable {
  const char* isa;
  int64_t panel;          // P, tokens of a panel
  int64_t vector_length;  // VL, floats of a vector

  int64_t (*packed_head_floats)(int64_t width, int64_t head_dim);
  int64_t (*pair_scratch_floats)(int64_t num_tokens, int64_t num_keys, int64_t head_dim);
  void (*pack_head)(const PackHeadParams&);
  void (*pack_tokens)(const PackTokensParams&);
  void (*attention_pair)(const PairParams&);
  void (*attention_output)(const OutputParams&);

  int64_t (*packed_head_backward_floats)(int64_t width, int64_t head_dim);
  int64_t (*packed_columns_floats)(int64_t rows, int64_t width);
  int64_t (*pair_backward_scratch_floats)(int64_t num_tokens, int64_t num_keys, int64_t head_dim);
  int64_t (*weight_gradient_scratch_floats)(int64_t head_dim);
  void (*pack_head_backward)(const PackHeadParams&);  // reads no biases
  void (*pack_columns)(const PackColumnsParams&);
  void (*attention_pair_backward)(const PairBackwardParams&);
  // As attention_output, with the gradients of q, k, v for the context, three segments a head, and
  // what `pack_head_backward` packed for the weights.
  void (*input_gradient)(const OutputParams&);
  void (*weight_gradient)(const WeightGradientParams&);

  int64_t (*packed_block_floats)(int64_t width, int64_t block_size, bool gated);
  int64_t (*hidden_scratch_floats)(int64_t block_size);
  void (*pack_block)(const PackBlockParams&);
  void (*feed_forward_hidden)(const HiddenParams&);
  void (*feed_forward_output)(const FeedForwardOutputParams&);

  // y[i] = exp(x[i]) as in the softmax: 0 below the smallest normal number.
  void (*exponential)(const float* x, float* y, int64_t count);
  // value[i] = act(x[i]), slope[i] = its derivative, as in the feed-forward block.
  void (*activate)(Activation, const float* x, float* value, float* slope, int64_t count);
  // Runs independent multiply-adds in registers and returns how many FLOPs they were: the ceiling
  // of the other kernels.
  double (*probe)(int64_t iterations);
};

// The kernels of the CUDA backend; nullptr from no_cuda.cpp, which stands in for them.
struct CudaKernelTable;
const CudaKernelTable* cuda_kernel_table();

}  // namespace headkit::kernels
