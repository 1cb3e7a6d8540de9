#pragma once

#include "headkit/core/gate_set.h"

namespace headkit {

/// The gates in the dtype that a model with these hidden states takes, and on their device.
GateSet fitting(GateSet gates, const at::Tensor& hidden);

}  // namespace headkit
