#include "headkit/gates/learned_gate_score.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {

HeadScores learned_gate_scores(const LearnedGates& gates, const std::string& parameter) {
  HeadScores scores;
  scores.metric = "learned_gates";
  std::string known;
  for (const GateParameter& each : gates.parameters()) {
    known += (known.empty() ? "" : ", ") + each.name;
    const bool asked = parameter.empty() ? each.value.dim() == 2 && !each.ascend
                                         : each.name == parameter && each.value.dim() == 2;
    if (!asked || scores.values.defined()) continue;
    scores.values = each.value.detach().to(at::kCPU, at::kDouble).clone();
    scores.settings = Json{{"gates", gates.name()}, {"parameter", each.name}}.dump();
  }
  HEADKIT_CHECK(scores.values.defined(), "learned_gate_scores",
                parameter.empty() ? "a parameter of shape [layers, heads]"
                                  : "a parameter '" + parameter + "' of shape [layers, heads]",
                "parameters ", known.empty() ? "none" : known);
  scores.check("learned_gate_scores");
  return scores;
}

}  // namespace headkit
