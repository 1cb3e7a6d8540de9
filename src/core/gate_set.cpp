#include "headkit/core/gate_set.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {

namespace {

// Gates of units beyond heads and blocks of neurons.
struct Unit {
  const char* name;
  at::Tensor GateSet::*gates;
  int64_t least_rank, most_rank;
};
constexpr Unit kUnits[] = {{"neurons", &GateSet::neurons, 2, 3},
                           {"attention_sublayers", &GateSet::attention_sublayers, 1, 2},
                           {"feed_forward_sublayers", &GateSet::feed_forward_sublayers, 1, 2},
                           {"hidden", &GateSet::hidden, 1, 1}};

void check_values(const char* operation, const at::Tensor& gates) {
  HEADKIT_CHECK(gates.scalar_type() == at::kFloat || gates.scalar_type() == at::kDouble, operation,
                "gates of float32 or float64", gates.scalar_type());
  HEADKIT_CHECK(!gates.device().is_cpu() || gates.isfinite().all().item<bool>(), operation,
                "finite gates", "NaN or infinity");
}

// Gates [..., last] or [B, ..., last], where `sizes` are those of all axes but the batch.
void check_shape(const char* operation, const char* what, const at::Tensor& gates, int64_t batch,
                 at::IntArrayRef sizes) {
  const auto rank = static_cast<int64_t>(sizes.size());
  const bool batched = gates.dim() == rank + 1;
  const bool fits = (batched || gates.dim() == rank) &&
                    gates.sizes().slice(batched ? 1 : 0) == sizes &&
                    (!batched || batch < 0 || gates.size(0) == batch);
  std::string tail;
  for (const int64_t size : sizes) tail += (tail.empty() ? "" : ", ") + std::to_string(size);
  HEADKIT_CHECK(fits, operation,
                c10::str("gates of ", what, " of shape [", tail, "] or [",
                         batch < 0 ? std::string("batch") : std::to_string(batch), ", ", tail, "]"),
                "shape ", gates.sizes());
  check_values(operation, gates);
}

// The row of a layer in gates [L, n] or [B, L, n].
at::Tensor of_layer(const at::Tensor& gates, int64_t layer) {
  return gates.defined() ? gates.select(gates.dim() == 2 ? 0 : 1, layer) : at::Tensor();
}

// One gate of a layer in gates [L] or [B, L], ready to multiply [B, T, D].
at::Tensor factor(const at::Tensor& gates, int64_t layer) {
  if (!gates.defined()) return {};
  const at::Tensor gate = gates.select(-1, layer);
  return gate.dim() == 0 ? gate : gate.reshape({-1, 1, 1});
}

void gates_to_json(Json& json, const std::string& name, const at::Tensor& gates) {
  json[name] = tensor_to_json("gate_set", gates);
  const std::string prefix = name == "heads" ? "" : name + "_";
  json[prefix + "rank"] = gates.dim();
  json[prefix + "dtype"] = gates.scalar_type() == at::kDouble ? "float64" : "float32";
}

at::Tensor gates_from_json(const Json& json, const std::string& name, int64_t least_rank = 2,
                           int64_t most_rank = 4) {
  constexpr auto kOperation = "gate_set";
  const std::string prefix = name == "heads" ? "" : name + "_";
  const int64_t rank = integer_member(kOperation, json, (prefix + "rank").c_str());
  HEADKIT_CHECK(rank >= least_rank && rank <= most_rank, kOperation,
                c10::str(name, " of rank ", least_rank, " to ", most_rank), rank);
  const bool is_double = string_member(kOperation, json, (prefix + "dtype").c_str()) == "float64";
  return tensor_from_json(kOperation, member(kOperation, json, name.c_str()), rank)
      .to(is_double ? at::kDouble : at::kFloat);
}

}  // namespace

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

at::Tensor GateSet::layer_neurons(int64_t layer) const { return of_layer(neurons, layer); }

at::Tensor GateSet::attention_factor(int64_t layer) const {
  return factor(attention_sublayers, layer);
}

at::Tensor GateSet::feed_forward_factor(int64_t layer) const {
  return factor(feed_forward_sublayers, layer);
}

GateSet GateSet::select_samples(const at::Tensor& index) const {
  GateSet selected = *this;
  if (heads.defined() && heads.dim() > 2) selected.heads = heads.index_select(0, index);
  if (blocks.defined() && blocks.dim() > 2) selected.blocks = blocks.index_select(0, index);
  if (neurons.defined() && neurons.dim() > 2) selected.neurons = neurons.index_select(0, index);
  for (const auto sublayers : {&GateSet::attention_sublayers, &GateSet::feed_forward_sublayers}) {
    const at::Tensor& gates = this->*sublayers;
    if (gates.defined() && gates.dim() > 1) selected.*sublayers = gates.index_select(0, index);
  }
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
    check_values(operation, heads);
  }
  HEADKIT_CHECK(
      !dropped_output.defined() || (dropped_output.dim() == 3 && dropped_output.size(0) == layers &&
                                    dropped_output.size(1) == model_heads),
      operation, c10::str("dropped_output of shape [", layers, ", ", model_heads, ", D]"), "shape ",
      dropped_output.sizes());
  if (attention_sublayers.defined()) {
    check_shape(operation, "attention blocks", attention_sublayers, batch, {layers});
  }
}

void GateSet::check_feed_forward(const char* operation, int64_t batch, int64_t layers,
                                 int64_t count) const {
  if (neurons.defined()) check_shape(operation, "neurons", neurons, batch, {layers, count});
  if (feed_forward_sublayers.defined()) {
    check_shape(operation, "feed-forward blocks", feed_forward_sublayers, batch, {layers});
  }
}

void GateSet::check_hidden(const char* operation, int64_t model_dim) const {
  if (!hidden.defined()) return;
  HEADKIT_CHECK(hidden.dim() == 1 && hidden.size(0) == model_dim, operation,
                c10::str("gates of the residual stream of shape [", model_dim, "]"), "shape ",
                hidden.sizes());
  check_values(operation, hidden);
}

void GateSet::check_blocks(const char* operation, int64_t batch, int64_t layers,
                           int64_t count) const {
  if (blocks.defined()) {
    const int64_t rank = blocks.dim();
    HEADKIT_CHECK(rank >= 2 && rank <= 3 && blocks.size(-1) == count && blocks.size(-2) == layers &&
                      (rank == 2 || batch < 0 || blocks.size(0) == batch),
                  operation,
                  c10::str("gates of neuron blocks of shape [", layers, ", ", count, "] or [",
                           batch < 0 ? std::string("batch") : std::to_string(batch), ", ", layers,
                           ", ", count, "]"),
                  "shape ", blocks.sizes());
    check_values(operation, blocks);
  }
  HEADKIT_CHECK(
      !dropped_blocks.defined() || (dropped_blocks.dim() == 3 && dropped_blocks.size(0) == layers &&
                                    dropped_blocks.size(1) == count),
      operation, c10::str("dropped_blocks of shape [", layers, ", ", count, ", D]"), "shape ",
      dropped_blocks.sizes());
}

std::string GateSet::to_json() const {
  constexpr auto kOperation = "gate_set";
  Json json{{"skip", skip}, {"heads", nullptr}, {"dropped_output", nullptr}};
  if (heads.defined()) gates_to_json(json, "heads", heads);
  if (dropped_output.defined()) json["dropped_output"] = tensor_to_json(kOperation, dropped_output);
  if (blocks.defined()) gates_to_json(json, "blocks", blocks);
  if (dropped_blocks.defined()) json["dropped_blocks"] = tensor_to_json(kOperation, dropped_blocks);
  for (const auto& unit : kUnits) {
    if (const at::Tensor& values = this->*unit.gates; values.defined()) {
      gates_to_json(json, unit.name, values);
    }
  }
  return json.dump();
}

GateSet GateSet::from_json(const std::string& text) {
  constexpr auto kOperation = "gate_set";
  const Json json = parse_json(kOperation, text);
  GateSet gates;
  const Json& skip = member(kOperation, json, "skip");
  HEADKIT_CHECK(skip.is_boolean(), kOperation, "true or false as \"skip\"", skip.dump());
  gates.skip = skip.get<bool>();
  if (!member(kOperation, json, "heads").is_null()) gates.heads = gates_from_json(json, "heads");
  if (const Json& dropped = member(kOperation, json, "dropped_output"); !dropped.is_null()) {
    gates.dropped_output = tensor_from_json(kOperation, dropped, 3).to(at::kFloat);
  }
  if (json.contains("blocks")) gates.blocks = gates_from_json(json, "blocks");
  if (json.contains("dropped_blocks")) {
    gates.dropped_blocks = tensor_from_json(kOperation, json["dropped_blocks"], 3).to(at::kFloat);
  }
  for (const auto& unit : kUnits) {
    if (json.contains(unit.name)) {
      gates.*unit.gates = gates_from_json(json, unit.name, unit.least_rank, unit.most_rank);
    }
  }
  return gates;
}

}  // namespace headkit
