#pragma once

#include "explain/input_runs.h"

namespace headkit {

struct WriteNorms {
  at::Tensor write;  ///< double [L, H]: mean over valid tokens of ||g o||; g = 1 for closed heads
  at::Tensor relative;  ///< the same over the mean norm of the residual stream before the layer
};

WriteNorms write_norms(GatedModel& model, const InputRuns& input);

}  // namespace headkit
