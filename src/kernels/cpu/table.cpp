// Built once for each instruction-set level: HEADKIT_ISA is the level's namespace, HEADKIT_ISA_NAME
// its name, and one of HEADKIT_LEVEL_SCALAR, _AVX2, _AVX512 is defined.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_backward.h"
#include "kernels/cpu/feed_forward.h"
#include "kernels/cpu/packing.h"
#include "kernels/cpu/probe.h"
#include "kernels/kernel_table.h"

namespace headkit::kernels::HEADKIT_ISA {

const KernelTable& table() {
  static constexpr KernelTable kTable{
      .isa = HEADKIT_ISA_NAME,
      .panel = kPanel,
      .vector_length = kLanes,
      .packed_head_floats = packed_head_floats,
      .pair_scratch_floats = pair_scratch_floats,
      .pack_head = pack_head,
      .pack_tokens = pack_tokens,
      .attention_pair = attention_pair,
      .attention_output = attention_output,
      .packed_head_backward_floats = packed_head_backward_floats,
      .packed_columns_floats = packed_columns_floats,
      .pair_backward_scratch_floats = pair_backward_scratch_floats,
      .weight_gradient_scratch_floats = weight_gradient_scratch_floats,
      .pack_head_backward = pack_head_backward,
      .pack_columns = pack_columns,
      .attention_pair_backward = attention_pair_backward,
      .input_gradient = input_gradient,
      .weight_gradient = weight_gradient,
      .packed_block_floats = packed_block_floats,
      .hidden_scratch_floats = hidden_scratch_floats,
      .pack_block = pack_block,
      .feed_forward_hidden = feed_forward_hidden,
      .feed_forward_output = feed_forward_output,
      .exponential = exponential,
      .activate = activate,
      .probe = probe,
  };
  return kTable;
}

}  // namespace headkit::kernels::HEADKIT_ISA
