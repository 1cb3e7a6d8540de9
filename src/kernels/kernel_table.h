#pragma once

#include "kernels/bf16_params.h"
#include "kernels/params.h"

namespace headkit::kernels {

// The kernels of one instruction-set level. Every output element is accumulated by one chain of
// multiply-adds in a fixed order, so a result depends on the level, but on nothing else: not on the
// other samples, the padding or the thread.
struct KernelTable {
  const char* isa;
  int64_t panel;          // P, tokens of a panel
  int64_t vector_length;  // VL, floats of a vector

  // Layouts.
  int64_t (*block_floats)(int64_t count, int64_t depth);
  int64_t (*column_panel_floats)(int64_t count, int64_t depth);
  void (*pack_blocks)(const PackMatrixParams&);
  void (*pack_column_panels)(const PackMatrixParams&);
  void (*pack_tokens)(const PackTokensParams&);

  // Forward, in the order of the data.
  void (*project_panels)(const ProjectParams&);
  void (*project_rows)(const ProjectParams&);
  void (*transform)(const TransformParams&);
  int64_t (*attend_scratch_floats)(int64_t num_keys);
  void (*attend)(const AttendParams&);
  int64_t (*statistics_scratch_floats)(int64_t num_keys, int64_t head_dim);
  void (*statistics)(const StatisticsParams&);
  void (*sum_projections)(const SumProjectionsParams&);
  void (*transform_rows)(const TransformRowsParams&);
  int64_t (*attend_rows_scratch_floats)();
  void (*attend_rows)(const AttendRowsParams<float>&);
  void (*attend_bf16_rows)(const AttendRowsParams<Bf16>&);

  // Backward; `sum_projections` makes the gradient of the input.
  void (*prepare_keys)(const PrepareKeysParams&);
  int64_t (*attend_backward_scratch_floats)(int64_t num_keys, int64_t head_dim);
  void (*attend_backward)(const AttendBackwardParams&);
  void (*transform_backward)(const TransformBackwardParams&);
  void (*panels_to_rows)(const TurnPanelsParams&);
  void (*rows_to_panels)(const TurnPanelsParams&);
  int64_t (*bias_gradient_scratch_floats)();
  void (*bias_gradient)(const BiasGradientParams&);
  void (*place_keys)(const PlaceKeysParams&);
  int64_t (*weight_gradient_scratch_floats)(int64_t head_dim);
  void (*weight_gradient)(const WeightGradientParams&);

  // Feed-forward; `sum_projections` makes its output, with what lies `packed_block_output` floats
  // behind the start of a packed block.
  int64_t (*packed_block_floats)(int64_t width, int64_t block_size, bool gated);
  int64_t (*packed_block_output)(int64_t width, int64_t block_size, bool gated);
  int64_t (*hidden_scratch_floats)(int64_t block_size);
  void (*pack_block)(const PackBlockParams&);
  void (*feed_forward_hidden)(const HiddenParams&);
  int64_t (*hidden_backward_scratch_floats)(int64_t num_blocks, int64_t block_size);
  void (*feed_forward_hidden_backward)(const HiddenBackwardParams&);

  // y[i] = exp(x[i]) as in the softmax: 0 below the smallest normal number.
  void (*exponential)(const float* x, float* y, int64_t count);
  // value[i] = act(x[i]), slope[i] = its derivative, as in the feed-forward block.
  void (*activate)(Activation, const float* x, float* value, float* slope, int64_t count);
  // Runs independent multiply-adds in registers and returns how many FLOPs they were: the ceiling
  // of the other kernels.
  double (*probe)(int64_t iterations);

  const Bf16Kernels* bf16 = nullptr;  // nullptr: bfloat16 is widened to float32
};

// The kernels of the CUDA backend; nullptr from no_cuda.cpp, which stands in for them.
struct CudaKernelTable;
const CudaKernelTable* cuda_kernel_table();

}  // namespace headkit::kernels
