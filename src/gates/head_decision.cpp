#include "gates/head_decision.h"

#include <ATen/ATen.h>

#include "headkit/core/error.h"

namespace headkit {

HeadDecision head_decision(HeadId id, double gate, HeadReason reason, int8_t fixed,
                           const HeadMask& present, double logit, double threshold) {
  HeadDecision decision;
  decision.layer = id.layer;
  decision.head = id.head;
  decision.gate = gate;
  if (fixed != 0) {
    decision.state = fixed > 0 ? "always_on" : "pruned";
    decision.reason = present.layers() > 0 && !present.contains(id) ? "removed" : "fixed";
  } else {
    decision.state = reason == HeadReason::kClosed ? "off" : "on";
    decision.reason = reason == HeadReason::kFloor ? "floor" : "score";
  }
  decision.logit = logit;
  decision.threshold = threshold;
  decision.margin = logit - threshold;
  return decision;
}

void check_fixed_heads(const char* operation, const at::Tensor& fixed, at::IntArrayRef shape) {
  HEADKIT_CHECK(fixed.sizes() == shape && fixed.scalar_type() == at::kChar && fixed.is_cpu() &&
                    (fixed.abs() <= 1).all().item<bool>(),
                operation, c10::str("int8 fixed heads of -1, 0, 1 and shape ", shape),
                fixed.scalar_type(), " ", fixed.sizes());
}

void check_logits(const char* operation, const at::Tensor& logits, const at::Tensor& fixed) {
  HEADKIT_CHECK(
      logits.dim() == 3 && logits.scalar_type() == at::kDouble && logits.is_cpu() &&
          logits.sizes().slice(1) == fixed.sizes(),
      operation,
      c10::str("float64 logits of shape [samples, ", fixed.size(0), ", ", fixed.size(1), "]"),
      logits.scalar_type(), " of shape ", logits.sizes());
}

std::vector<std::string> read_feature_names(const char* operation, const Json& json) {
  std::vector<std::string> names;
  if (!json.contains("features")) return names;
  const Json& listed = json.at("features");
  HEADKIT_CHECK(listed.is_array(), operation, "an array as \"features\"", listed.type_name());
  for (const Json& name : listed) {
    HEADKIT_CHECK(name.is_string(), operation, "names of features", name.type_name());
    names.push_back(name.get<std::string>());
  }
  return names;
}

std::vector<LinearProbe> read_probes(const char* operation, const Json& json) {
  std::vector<LinearProbe> probes;
  if (!json.contains("probes")) return probes;
  const Json& listed = json.at("probes");
  HEADKIT_CHECK(listed.is_array(), operation, "an array as \"probes\"", listed.type_name());
  for (const Json& probe : listed) probes.push_back(LinearProbe::from_json(probe.dump()));
  return probes;
}

}  // namespace headkit
