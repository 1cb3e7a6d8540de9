#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "core/json.h"
#include "gates/head_rule.h"
#include "headkit/core/head_layout.h"
#include "headkit/explain/decision_record.h"
#include "headkit/gates/linear_probe.h"

namespace headkit {

/// What a linear gate writes about one head, without the parts of its logit.
HeadDecision head_decision(HeadId id, double gate, HeadReason reason, int8_t fixed,
                           const HeadMask& present, double logit, double threshold);

/// What linear gates check and read alike. `fixed`: int8 -1, 0, 1 of this shape; `logits`: double
/// [N, L, H], CPU, of the heads of `fixed`.
void check_fixed_heads(const char* operation, const at::Tensor& fixed, at::IntArrayRef shape);
void check_logits(const char* operation, const at::Tensor& logits, const at::Tensor& fixed);
std::vector<std::string> read_feature_names(const char* operation, const Json& json);
std::vector<LinearProbe> read_probes(const char* operation, const Json& json);

}  // namespace headkit
