// Built once for each instruction-set level: HEADKIT_ISA is the level's namespace, HEADKIT_ISA_NAME
// its name, and one of HEADKIT_LEVEL_SCALAR, _AVX2, _AVX512 is defined.
#include "kernels/cpu/attention.h"
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
      .exponential = exponential,
      .probe = probe,
  };
  return kTable;
}

}  // namespace headkit::kernels::HEADKIT_ISA
