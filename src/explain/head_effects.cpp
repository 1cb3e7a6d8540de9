#include "headkit/explain/head_effects.h"

#include <cmath>

#include "core/json_members.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "head_effects";

Json finite(double value) {
  HEADKIT_CHECK(std::isfinite(value), kOperation, "finite effects", value);
  return value;
}

Json finite(const std::optional<double>& value) { return value ? finite(*value) : Json(nullptr); }

Json interval(const std::optional<double>& lower, const std::optional<double>& upper) {
  return lower && upper ? Json{finite(*lower), finite(*upper)} : Json(nullptr);
}

void read_interval(const Json& json, const char* name, std::optional<double>& lower,
                   std::optional<double>& upper) {
  if (known_member(json, name) == nullptr) return;
  const Json& ends = json.at(name);
  HEADKIT_CHECK(ends.is_array() && ends.size() == 2 && ends[0].is_number() && ends[1].is_number(),
                kOperation, "two numbers as an interval", ends.dump().substr(0, 80));
  lower = ends[0].get<double>();
  upper = ends[1].get<double>();
}

Json place(const HeadId& head) { return {{"layer", head.layer}, {"head", head.head}}; }

HeadId read_place(const Json& json) {
  return {integer_member(kOperation, json, "layer"), integer_member(kOperation, json, "head")};
}

Json to_json_of(const ToggleEffect& toggle) {
  return {{"ablation", toggle.ablation},
          {"frozen", finite(toggle.frozen)},
          {"redecided", finite(toggle.redecided)},
          {"routing_mediated", finite(toggle.routing_mediated())},
          {"interval", interval(toggle.lower, toggle.upper)}};
}

ToggleEffect toggle_from_json(const Json& json) {
  ToggleEffect toggle;
  toggle.ablation = string_member(kOperation, json, "ablation");
  toggle.frozen = number_member(kOperation, json, "frozen");
  toggle.redecided = optional_number(kOperation, json, "redecided");
  read_interval(json, "interval", toggle.lower, toggle.upper);
  return toggle;
}

Json to_json_of(const HeadEffects& effects) {
  Json flipped = Json::array();
  for (const FlippedGate& each : effects.flipped_gates) {
    flipped.push_back(place(each.head));
    flipped.back()["on"] = each.on;
  }
  Json json = place(effects.head);
  json.update({{"gate", finite(effects.gate)},
               {"write_norm", finite(effects.write_norm)},
               {"relative_write_norm", finite(effects.relative_write_norm)},
               {"direct", finite(effects.direct)},
               {"direct_linearised", effects.direct_linearised},
               {"gate_gradient", finite(effects.gate_gradient)},
               {"integrated_gate_gradient", finite(effects.integrated_gate_gradient)},
               {"toggle", effects.toggle ? to_json_of(*effects.toggle) : Json(nullptr)},
               {"repair", finite(effects.repair())},
               {"repair_interval", interval(effects.repair_lower, effects.repair_upper)},
               {"shapley", finite(effects.shapley)},
               {"shapley_error", finite(effects.shapley_error)},
               {"flipped_gates", std::move(flipped)},
               {"level", nullable(effects.level())}});
  return json;
}

HeadEffects effects_from_json(const Json& json) {
  HeadEffects effects;
  effects.head = read_place(json);
  effects.gate = number_member(kOperation, json, "gate");
  effects.write_norm = optional_number(kOperation, json, "write_norm");
  effects.relative_write_norm = optional_number(kOperation, json, "relative_write_norm");
  effects.direct = optional_number(kOperation, json, "direct");
  effects.direct_linearised = flag_member(kOperation, json, "direct_linearised");
  effects.gate_gradient = optional_number(kOperation, json, "gate_gradient");
  effects.integrated_gate_gradient = optional_number(kOperation, json, "integrated_gate_gradient");
  if (const Json* toggle = known_member(json, "toggle")) {
    effects.toggle = toggle_from_json(*toggle);
  }
  read_interval(json, "repair_interval", effects.repair_lower, effects.repair_upper);
  effects.shapley = optional_number(kOperation, json, "shapley");
  effects.shapley_error = optional_number(kOperation, json, "shapley_error");
  for (const Json& each : array_member(kOperation, json, "flipped_gates")) {
    effects.flipped_gates.push_back({read_place(each), flag_member(kOperation, each, "on")});
  }
  return effects;
}

Json to_json_of(const PairEffect& pair) {
  return {{"a", place(pair.a)},        {"b", place(pair.b)},
          {"index", pair.index},       {"value", finite(pair.value)},
          {"ablation", pair.ablation}, {"interval", interval(pair.lower, pair.upper)}};
}

PairEffect pair_from_json(const Json& json) {
  PairEffect pair;
  pair.a = read_place(member(kOperation, json, "a"));
  pair.b = read_place(member(kOperation, json, "b"));
  pair.index = string_member(kOperation, json, "index");
  pair.value = number_member(kOperation, json, "value");
  pair.ablation = string_member(kOperation, json, "ablation");
  read_interval(json, "interval", pair.lower, pair.upper);
  return pair;
}

}  // namespace

std::optional<double> ToggleEffect::routing_mediated() const {
  if (!redecided) return std::nullopt;
  return *redecided - frozen;
}

std::optional<double> HeadEffects::repair() const {
  if (!direct || !toggle) return std::nullopt;
  return *direct - toggle->frozen;
}

std::string HeadEffects::level() const {
  if (toggle || shapley) return "L2";
  if (direct || gate_gradient || integrated_gate_gradient) return "L1";
  return write_norm ? "L0" : "";
}

std::string InputEffects::to_json() const {
  Json all_heads = Json::array(), all_pairs = Json::array(), missing = Json::array();
  for (const HeadEffects& each : heads) all_heads.push_back(to_json_of(each));
  for (const PairEffect& each : pairs) all_pairs.push_back(to_json_of(each));
  for (const NotComputed& each : not_computed) {
    missing.push_back({{"quantity", each.quantity}, {"reason", each.reason}});
  }
  return Json{{"input", input},
              {"metric", metric},
              {"target", nullable(target)},
              {"distractor", nullable(distractor)},
              {"value", finite(value)},
              {"value_without_heads", finite(value_without_heads)},
              {"ablation", nullable(ablation)},
              {"reference", nullable(reference)},
              {"routing", nullable(routing)},
              {"path_gap", finite(path_gap)},
              {"direct_residual", finite(direct_residual)},
              {"heads", std::move(all_heads)},
              {"pairs", std::move(all_pairs)},
              {"not_computed", std::move(missing)}}
      .dump();
}

std::string InputEffects::record_patch() const {
  Json all_heads = Json::array(), all_pairs = Json::array();
  for (const HeadEffects& each : heads) {
    Json head = place(each.head);
    head["effects"] = to_json_of(each);
    for (const char* const name : {"layer", "head"}) head["effects"].erase(name);
    all_heads.push_back(std::move(head));
  }
  for (const PairEffect& each : pairs) all_pairs.push_back(to_json_of(each));
  return Json{{"output",
               {{"metric", metric},
                {"target", nullable(target)},
                {"distractor", nullable(distractor)},
                {"value_selected", finite(value)}}},
              {"heads", std::move(all_heads)},
              {"pairs", std::move(all_pairs)}}
      .dump();
}

InputEffects InputEffects::from_json(const std::string& text) {
  const Json json = parse_json(kOperation, text);
  InputEffects effects;
  effects.input = integer_member(kOperation, json, "input");
  effects.metric = string_member(kOperation, json, "metric");
  effects.target = optional_integer(kOperation, json, "target");
  effects.distractor = optional_integer(kOperation, json, "distractor");
  effects.value = number_member(kOperation, json, "value");
  effects.value_without_heads = optional_number(kOperation, json, "value_without_heads");
  effects.ablation = optional_text(kOperation, json, "ablation");
  effects.reference = optional_text(kOperation, json, "reference");
  effects.routing = optional_text(kOperation, json, "routing");
  effects.path_gap = optional_number(kOperation, json, "path_gap");
  effects.direct_residual = optional_number(kOperation, json, "direct_residual");
  for (const Json& each : array_member(kOperation, json, "heads")) {
    effects.heads.push_back(effects_from_json(each));
  }
  for (const Json& each : array_member(kOperation, json, "pairs")) {
    effects.pairs.push_back(pair_from_json(each));
  }
  for (const Json& each : array_member(kOperation, json, "not_computed")) {
    effects.not_computed.push_back(
        {string_member(kOperation, each, "quantity"), string_member(kOperation, each, "reason")});
  }
  return effects;
}

}  // namespace headkit
