#include "gates/fitting.h"

#include <ATen/ATen.h>

#include "gates/early_record.h"

namespace headkit {

GateSet fitting(GateSet gates, const at::Tensor& hidden) {
  const at::TensorOptions options = gate_options(hidden);
  for (at::Tensor* each : {&gates.heads, &gates.attention_sublayers, &gates.neurons,
                           &gates.feed_forward_sublayers, &gates.hidden}) {
    if (each->defined()) *each = each->to(options);
  }
  return gates;
}

}  // namespace headkit
