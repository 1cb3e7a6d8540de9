#include "gates/fitting.h"

#include <ATen/ATen.h>

#include "gates/early_record.h"

namespace headkit {

GateSet fitting(GateSet gates, const at::Tensor& hidden) {
  const at::TensorOptions options = gate_options(hidden);
  if (gates.heads.defined()) gates.heads = gates.heads.to(options);
  return gates;
}

}  // namespace headkit
