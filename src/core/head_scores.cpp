#include "headkit/core/head_scores.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {

void HeadScores::check(const char* operation) const {
  HEADKIT_CHECK(values.defined() && values.dim() == 2 && values.scalar_type() == at::kDouble &&
                    values.device().is_cpu(),
                operation, "scores of shape [layers, heads], float64 on CPU",
                values.defined() ? c10::str(values.scalar_type(), " of shape ", values.sizes())
                                 : std::string("none"));
  HEADKIT_CHECK(values.isfinite().all().item<bool>(), operation, "finite scores",
                "NaN or infinity");
  for (const at::Tensor& bound : {lower, upper}) {
    HEADKIT_CHECK(!bound.defined() || bound.sizes() == values.sizes(), operation,
                  c10::str("interval bounds of shape ", values.sizes()), "shape ", bound.sizes());
  }
}

std::string HeadScores::to_json() const {
  constexpr auto kOperation = "head_scores";
  check(kOperation);
  Json json{{"metric", metric},         {"objective", objective},
            {"samples", samples},       {"seed", seed},
            {"confidence", confidence}, {"values", tensor_to_json(kOperation, values)}};
  json["settings"] = settings.empty() ? Json::object() : parse_json(kOperation, settings);
  json["lower"] = lower.defined() ? tensor_to_json(kOperation, lower) : Json(nullptr);
  json["upper"] = upper.defined() ? tensor_to_json(kOperation, upper) : Json(nullptr);
  return json.dump();
}

HeadScores HeadScores::from_json(const std::string& text) {
  constexpr auto kOperation = "head_scores";
  const Json json = parse_json(kOperation, text);
  HeadScores scores;
  scores.metric = string_member(kOperation, json, "metric");
  scores.objective = string_member(kOperation, json, "objective");
  scores.samples = integer_member(kOperation, json, "samples");
  scores.confidence = number_member(kOperation, json, "confidence");
  const Json& seed = member(kOperation, json, "seed");
  HEADKIT_CHECK(seed.is_number_unsigned(), kOperation, "a whole number >= 0 as \"seed\"",
                seed.dump());
  scores.seed = seed.get<uint64_t>();
  scores.settings = member(kOperation, json, "settings").dump();
  scores.values = tensor_from_json(kOperation, member(kOperation, json, "values"), 2);
  const auto bound = [&](const char* name) {
    const Json& found = member(kOperation, json, name);
    return found.is_null() ? at::Tensor() : tensor_from_json(kOperation, found, 2);
  };
  scores.lower = bound("lower");
  scores.upper = bound("upper");
  scores.check(kOperation);
  return scores;
}

}  // namespace headkit
