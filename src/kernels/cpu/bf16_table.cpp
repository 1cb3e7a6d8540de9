// Built for a level that multiplies bfloat16 natively, beside a level of float32 kernels:
// HEADKIT_LEVEL_AVX512 is defined too, for the vectors of float32 in which sums are kept.
#include "kernels/bf16_params.h"
#include "kernels/cpu/bf16_attend.h"
#include "kernels/cpu/bf16_feed_forward.h"
#include "kernels/cpu/bf16_packing.h"
#include "kernels/cpu/bf16_probe.h"
#include "kernels/cpu/bf16_project.h"
#include "kernels/cpu/bf16_sum_projections.h"

namespace headkit::kernels::HEADKIT_ISA {

const Bf16Kernels& table() {
  static constexpr Bf16Kernels kTable{
      .block_pairs = block_pairs,
      .column_panel_pairs = column_panel_pairs,
      .pack_blocks = pack_pair_blocks,
      .pack_column_panels = pack_pair_column_panels,
      .pack_tokens = pack_pair_tokens,
      .project_panels = project_pair_panels,
      .project_rows = project_pair_rows,
      .round_panels = round_pair_panels,
      .attend_scratch_floats = pair_attend_scratch_floats,
      .attend = attend_pairs,
      .sum_projections = sum_pair_projections,
      .packed_block_floats = packed_pair_block,
      .packed_block_output = packed_pair_block_output,
      .hidden_scratch_floats = pair_hidden_scratch_floats,
      .pack_block = pack_pair_block,
      .feed_forward_hidden = feed_forward_hidden_pairs,
      .probe = pair_probe,
  };
  return kTable;
}

}  // namespace headkit::kernels::HEADKIT_ISA
