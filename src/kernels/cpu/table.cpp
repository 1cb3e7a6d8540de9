// Built once for each instruction-set level: HEADKIT_ISA is the level's namespace, HEADKIT_ISA_NAME
// its name, and one of HEADKIT_LEVEL_SCALAR, _AVX2, _AVX512 is defined.
#include "kernels/cpu/attend.h"
#include "kernels/cpu/attend_backward.h"
#include "kernels/cpu/attend_rows.h"
#include "kernels/cpu/bias_gradient.h"
#include "kernels/cpu/feed_forward.h"
#include "kernels/cpu/feed_forward_backward.h"
#include "kernels/cpu/packing.h"
#include "kernels/cpu/probe.h"
#include "kernels/cpu/project.h"
#include "kernels/cpu/statistics.h"
#include "kernels/cpu/sum_projections.h"
#include "kernels/cpu/transform.h"
#include "kernels/cpu/transform_backward.h"
#include "kernels/cpu/weight_gradient.h"
#include "kernels/kernel_table.h"

namespace headkit::kernels::HEADKIT_ISA {

const KernelTable& table() {
  static constexpr KernelTable kTable{
      .isa = HEADKIT_ISA_NAME,
      .panel = kPanel,
      .vector_length = kLanes,
      .block_floats = block_floats,
      .column_panel_floats = column_panel_floats,
      .pack_blocks = pack_blocks,
      .pack_column_panels = pack_column_panels,
      .pack_tokens = pack_tokens,
      .project_panels = project_panels,
      .project_rows = project_rows,
      .transform = transform,
      .attend_scratch_floats = attend_scratch_floats,
      .attend = attend,
      .statistics_scratch_floats = statistics_scratch_floats,
      .statistics = statistics,
      .sum_projections = sum_projections,
      .transform_rows = transform_rows,
      .attend_rows_scratch_floats = attend_rows_scratch_floats,
      .attend_rows = attend_rows<float>,
      .attend_bf16_rows = attend_rows<Bf16>,
      .prepare_keys = prepare_keys,
      .attend_backward_scratch_floats = attend_backward_scratch_floats,
      .attend_backward = attend_backward,
      .transform_backward = transform_backward,
      .panels_to_rows = panels_to_rows,
      .rows_to_panels = rows_to_panels,
      .bias_gradient_scratch_floats = bias_gradient_scratch_floats,
      .bias_gradient = bias_gradient,
      .place_keys = place_keys,
      .weight_gradient_scratch_floats = weight_gradient_scratch_floats,
      .weight_gradient = weight_gradient,
      .packed_block_floats = packed_block_floats,
      .packed_block_output = packed_block_output,
      .hidden_scratch_floats = hidden_scratch_floats,
      .pack_block = pack_block,
      .feed_forward_hidden = feed_forward_hidden,
      .hidden_backward_scratch_floats = hidden_backward_scratch_floats,
      .feed_forward_hidden_backward = feed_forward_hidden_backward,
      .exponential = exponential,
      .activate = activate,
      .probe = probe,
  };
  return kTable;
}

}  // namespace headkit::kernels::HEADKIT_ISA
