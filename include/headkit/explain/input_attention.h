#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "headkit/core/gate_set.h"
#include "headkit/explain/coded_attention.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// What every head looks at in each example of a batch, coded.
///
/// `gates`: of the run. `sinks`: bool [B, T], keys whose mass is split off; undefined = none. By
/// example, then layer * heads + head; empty for heads that were removed, and for blocks whose keys
/// are not the tokens of `sinks` (cross-attention, the other half of an encoder-decoder). Padding
/// behind the last token is left out. Throws as `for_each_attention`, and for more than 65,536
/// tokens.
std::vector<std::vector<std::optional<CodedAttention>>> input_attention(GatedModel& model,
                                                                        const Batch& batch,
                                                                        const GateSet& gates,
                                                                        const at::Tensor& sinks);

}  // namespace headkit
