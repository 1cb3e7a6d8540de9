#include "headkit/core/gate_set.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {

GateSet GateSet::from_mask(const HeadMask& mask) {
  GateSet gates;
  gates.heads = mask.keep().to(at::kFloat);
  return gates;
}

at::Tensor GateSet::layer_gate(int64_t layer) const {
  if (!heads.defined()) return {};
  return heads.dim() == 2 ? heads.select(0, layer) : heads.select(1, layer);
}

at::Tensor GateSet::layer_dropped_output(int64_t layer) const {
  return dropped_output.defined() ? dropped_output.select(0, layer) : at::Tensor();
}

GateSet GateSet::select_samples(const at::Tensor& index) const {
  GateSet selected = *this;
  if (heads.defined() && heads.dim() > 2) selected.heads = heads.index_select(0, index);
  return selected;
}

void GateSet::check(const char* operation, int64_t batch, int64_t layers,
                    int64_t model_heads) const {
  if (heads.defined()) {
    const int64_t rank = heads.dim();
    const bool shape_fits = rank >= 2 && rank <= 4 && heads.size(-1) == model_heads &&
                            heads.size(rank == 2 ? 0 : 1) == layers &&
                            (rank == 2 || batch < 0 || heads.size(0) == batch);
    HEADKIT_CHECK(shape_fits, operation,
                  c10::str("gates of shape [", layers, ", ", model_heads, "], [",
                           batch < 0 ? std::string("batch") : std::to_string(batch), ", ", layers,
                           ", ", model_heads, "] or [batch, layers, tokens, heads]"),
                  "shape ", heads.sizes());
    HEADKIT_CHECK(heads.scalar_type() == at::kFloat || heads.scalar_type() == at::kDouble,
                  operation, "gates of float32 or float64", heads.scalar_type());
    HEADKIT_CHECK(!heads.device().is_cpu() || heads.isfinite().all().item<bool>(), operation,
                  "finite gates", "NaN or infinity");
  }
  HEADKIT_CHECK(
      !dropped_output.defined() || (dropped_output.dim() == 3 && dropped_output.size(0) == layers &&
                                    dropped_output.size(1) == model_heads),
      operation, c10::str("dropped_output of shape [", layers, ", ", model_heads, ", D]"), "shape ",
      dropped_output.sizes());
}

std::string GateSet::to_json() const {
  constexpr auto kOperation = "gate_set";
  Json json{{"skip", skip}, {"heads", nullptr}, {"dropped_output", nullptr}};
  if (heads.defined()) {
    json["rank"] = heads.dim();
    json["dtype"] = heads.scalar_type() == at::kDouble ? "float64" : "float32";
    json["heads"] = tensor_to_json(kOperation, heads);
  }
  if (dropped_output.defined()) json["dropped_output"] = tensor_to_json(kOperation, dropped_output);
  return json.dump();
}

GateSet GateSet::from_json(const std::string& text) {
  constexpr auto kOperation = "gate_set";
  const Json json = parse_json(kOperation, text);
  GateSet gates;
  const Json& skip = member(kOperation, json, "skip");
  HEADKIT_CHECK(skip.is_boolean(), kOperation, "true or false as \"skip\"", skip.dump());
  gates.skip = skip.get<bool>();
  if (const Json& heads = member(kOperation, json, "heads"); !heads.is_null()) {
    const int64_t rank = integer_member(kOperation, json, "rank");
    HEADKIT_CHECK(rank >= 2 && rank <= 4, kOperation, "gates of rank 2, 3 or 4", rank);
    const bool is_double = string_member(kOperation, json, "dtype") == "float64";
    gates.heads =
        tensor_from_json(kOperation, heads, rank).to(is_double ? at::kDouble : at::kFloat);
  }
  if (const Json& dropped = member(kOperation, json, "dropped_output"); !dropped.is_null()) {
    gates.dropped_output = tensor_from_json(kOperation, dropped, 3).to(at::kFloat);
  }
  return gates;
}

}  // namespace headkit
