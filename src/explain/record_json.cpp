#include "explain/record_json.h"

#include <cmath>

#include "headkit/core/error.h"
#include "headkit/explain/head_explanation.h"
#include "headkit/explain/record_details.h"

namespace headkit {
namespace {

constexpr auto kOperation = "decision_record";

bool flag(const Json& value, const char* name) {
  const Json* const given = known_member(value, name);
  if (given == nullptr) return false;
  HEADKIT_CHECK(given->is_boolean(), kOperation, std::string("true or false as \"") + name + "\"",
                given->type_name());
  return given->get<bool>();
}

int64_t whole(const Json& value, const char* what) {
  HEADKIT_CHECK(value.is_number_integer(), kOperation, std::string("whole numbers as ") + what,
                value.type_name());
  return value.get<int64_t>();
}

// Text that holds JSON, checked: it ends up in the record as it is.
Json embedded(const std::string& text) {
  return text.empty() ? Json(nullptr) : parse_json(kOperation, text);
}
std::string kept_text(const Json& value, const char* name) {
  const Json* const given = known_member(value, name);
  return given == nullptr ? std::string() : given->dump();
}

Json parts_json(const FeatureParts& given) {
  Json parts = Json::array();
  for (const FeaturePart& part : given.parts) {
    parts.push_back({{"unit", nullable(part.token)},
                     {"feature", part.scalar.empty() ? Json(part.dimension) : Json(part.scalar)},
                     {"value", finite_json(part.value, "part")}});
  }
  return {{"parts", std::move(parts)}, {"rest", finite_json(given.rest, "rest")}};
}

std::optional<FeatureParts> read_parts(const Json& why, const char* name) {
  const Json* const given = known_member(why, name);
  if (given == nullptr) return std::nullopt;
  FeatureParts result;
  result.rest = number_member(kOperation, *given, "rest");
  for (const Json& each : array_member(kOperation, *given, "parts")) {
    FeaturePart part;
    part.token = optional_integer(kOperation, each, "unit");
    const Json& feature = member(kOperation, each, "feature");
    if (feature.is_string()) {
      part.scalar = feature.get<std::string>();
    } else {
      part.dimension = whole(feature, "features");
    }
    part.value = number_member(kOperation, each, "value");
    result.parts.push_back(part);
  }
  return result;
}

Json flip_json(const HeadExplanation& explained) {
  if (!explained.flip) return nullptr;
  const GateFlip& flip = *explained.flip;
  Json json{{"removed", flip.removed},
            {"count", flip.removed.empty() ? Json(nullptr) : Json(flip.removed.size())},
            {"minimal", flip.minimal},
            {"verified", flip.verified},
            {"logit", finite_json(flip.logit, "logit")},
            {"in_model", nullptr}};
  if (explained.removal) {
    json["in_model"] = {{"state", explained.removal->state},
                        {"logit", nullable_json(explained.removal->logit, "logit")},
                        {"flips", explained.removal->flips}};
  }
  return json;
}

void read_flip(const Json& why, HeadExplanation& explained) {
  const Json* const given = known_member(why, "flip");
  if (given == nullptr) return;
  GateFlip flip;
  for (const Json& token : array_member(kOperation, *given, "removed")) {
    flip.removed.push_back(whole(token, "removed units"));
  }
  flip.minimal = flag(*given, "minimal");
  flip.verified = flag(*given, "verified");
  flip.logit = number_member(kOperation, *given, "logit");
  explained.flip = std::move(flip);
  if (const Json* const removal = known_member(*given, "in_model")) {
    explained.removal =
        TokenRemoval{string_member(kOperation, *removal, "state"),
                     optional_number(kOperation, *removal, "logit"), flag(*removal, "flips")};
  }
}

Json unit_json(const InputUnit& unit) {
  return {{"text", nullable(unit.text)},
          {"grid", unit.grid ? Json(*unit.grid) : Json(nullptr)},
          {"seconds", nullable_json(unit.seconds, "time")},
          {"special", unit.special},
          {"padding", unit.padding}};
}

InputUnit read_unit(const Json& json) {
  HEADKIT_CHECK(json.is_object(), kOperation, "an object for each unit", json.type_name());
  InputUnit unit;
  unit.text = optional_text(kOperation, json, "text");
  if (const Json* const grid = known_member(json, "grid")) {
    HEADKIT_CHECK(grid->is_array() && grid->size() == 2, kOperation,
                  "a row and a column as \"grid\"", grid->dump().substr(0, 60));
    unit.grid = {whole((*grid)[0], "a row"), whole((*grid)[1], "a column")};
  }
  unit.seconds = optional_number(kOperation, json, "seconds");
  unit.special = flag(json, "special");
  unit.padding = flag(json, "padding");
  return unit;
}

std::vector<std::string> read_warnings(const Json& json) {
  std::vector<std::string> warnings;
  if (known_member(json, "warnings") == nullptr) return warnings;
  for (const Json& warning : array_member(kOperation, json, "warnings")) {
    HEADKIT_CHECK(warning.is_string(), kOperation, "texts as warnings", warning.type_name());
    warnings.push_back(warning.get<std::string>());
  }
  return warnings;
}

const Json& group(const Json& json, const char* name) {
  static const Json none = Json::object();
  const Json* const given = known_member(json, name);
  if (given == nullptr) return none;
  HEADKIT_CHECK(given->is_object(), kOperation, std::string("an object as \"") + name + "\"",
                given->type_name());
  return *given;
}

}  // namespace

Json finite_json(double value, const char* what) {
  HEADKIT_CHECK(std::isfinite(value), kOperation, std::string("a finite ") + what, value);
  return value;
}
Json nullable_json(const std::optional<double>& value, const char* what) {
  return value ? finite_json(*value, what) : Json(nullptr);
}

void write_explanation(const HeadExplanation& explained, Json& head) {
  head["margin_std"] = nullable_json(explained.margin_std, "margin");
  head["distance"] = nullable_json(explained.distance, "distance");
  head["rank"] = nullable(explained.rank);
  Json rivals = Json::array();
  for (const RivalHead& rival : explained.rivals) {
    rivals.push_back({{"layer", rival.layer},
                      {"head", rival.head},
                      {"logit", finite_json(rival.logit, "logit")},
                      {"open", rival.open}});
  }
  head["rivals"] = std::move(rivals);
  if (head["why"].is_object()) {
    Json& why = head["why"];
    why["reference"] = nullable(explained.reference);
    why["features"] = explained.features ? parts_json(*explained.features) : Json(nullptr);
    why["joint"] = explained.joint ? parts_json(*explained.joint) : Json(nullptr);
    why["flip"] = flip_json(explained);
    why["control_share"] = nullable_json(explained.control_share, "share");
  }
  head["roles"] = embedded(explained.roles);
  head["effects"] = embedded(explained.effects);
  head["attention"] = embedded(explained.attention);
}

std::optional<HeadExplanation> read_explanation(const Json& head) {
  if (!head.contains("rivals") && !head.contains("roles") && !head.contains("effects") &&
      !head.contains("attention") && !head.contains("rank") && !head.contains("margin_std")) {
    return std::nullopt;
  }
  HeadExplanation explained;
  explained.margin_std = optional_number(kOperation, head, "margin_std");
  explained.distance = optional_number(kOperation, head, "distance");
  explained.rank = optional_integer(kOperation, head, "rank");
  if (known_member(head, "rivals") != nullptr) {
    for (const Json& rival : array_member(kOperation, head, "rivals")) {
      explained.rivals.push_back({integer_member(kOperation, rival, "layer"),
                                  integer_member(kOperation, rival, "head"),
                                  number_member(kOperation, rival, "logit"), flag(rival, "open")});
    }
  }
  if (const Json* const why = known_member(head, "why")) {
    explained.reference = optional_text(kOperation, *why, "reference");
    explained.features = read_parts(*why, "features");
    explained.joint = read_parts(*why, "joint");
    read_flip(*why, explained);
    explained.control_share = optional_number(kOperation, *why, "control_share");
  }
  explained.roles = kept_text(head, "roles");
  explained.effects = kept_text(head, "effects");
  explained.attention = kept_text(head, "attention");
  if (explained == HeadExplanation()) return std::nullopt;
  return explained;
}

void write_details(const RecordDetails& details, Json& json) {
  json["created"] = nullable(details.created);
  json["seeds"] = details.seeds;
  Json& library = json["library"];
  library["build"] = nullable(details.build);
  library["device"] = nullable(details.device);
  library["dtype"] = nullable(details.dtype);
  library["isa"] = nullable(details.isa);
  Json& model = json["model"];
  model["name"] = nullable(details.model_name);
  model["norm"] = nullable(details.norm);
  model["attention"] = nullable(details.attention);
  model["modality"] = nullable(details.modality);
  Json& input = json["input"];
  input["sha256"] = nullable(details.input_sha256);
  Json units = Json::array();
  for (const InputUnit& unit : details.units) units.push_back(unit_json(unit));
  input["units"] = details.units.empty() ? Json(nullptr) : std::move(units);
  json["output"] = nullptr;
  if (details.output) {
    json["output"] = {{"metric", details.output->metric},
                      {"target", nullable(details.output->target)},
                      {"distractor", nullable(details.output->distractor)},
                      {"value_selected", nullable_json(details.output->value_selected, "value")},
                      {"value_dense", nullable_json(details.output->value_dense, "value")}};
  }
  Json& policy = json["policy"];
  policy["version"] = nullable(details.policy_version);
  policy["sha256"] = nullable(details.policy_sha256);
  policy["kind"] = nullable(details.policy_kind);
  policy["granularity"] = nullable(details.granularity);
  policy["calibration_sha256"] = nullable(details.calibration_sha256);
  Json parameters = Json::object();
  for (const auto& [name, value] : details.policy_parameters) {
    parameters[name] = finite_json(value, "parameter");
  }
  policy["parameters"] = details.policy_parameters.empty() ? Json(nullptr) : std::move(parameters);
  json["budget"]["predicted_loss"] = nullable_json(details.predicted_loss, "loss");
  json["pairs"] = embedded(details.pairs);
  json["trust"] = {{"faithfulness", embedded(details.faithfulness)},
                   {"simulatability", embedded(details.simulatability)},
                   {"stability", embedded(details.stability)},
                   {"agreement", embedded(details.agreement)},
                   {"registry_version", nullable(details.role_registry)},
                   {"warnings", details.warnings}};
}

std::optional<RecordDetails> read_details(const Json& json) {
  RecordDetails details;
  details.created = optional_text(kOperation, json, "created");
  if (known_member(json, "seeds") != nullptr) {
    for (const Json& seed : array_member(kOperation, json, "seeds")) {
      details.seeds.push_back(whole(seed, "seeds"));
    }
  }
  const Json& library = group(json, "library");
  details.build = optional_text(kOperation, library, "build");
  details.device = optional_text(kOperation, library, "device");
  details.dtype = optional_text(kOperation, library, "dtype");
  details.isa = optional_text(kOperation, library, "isa");
  const Json& model = group(json, "model");
  details.model_name = optional_text(kOperation, model, "name");
  details.norm = optional_text(kOperation, model, "norm");
  details.attention = optional_text(kOperation, model, "attention");
  details.modality = optional_text(kOperation, model, "modality");
  const Json& input = group(json, "input");
  details.input_sha256 = optional_text(kOperation, input, "sha256");
  if (known_member(input, "units") != nullptr) {
    for (const Json& unit : array_member(kOperation, input, "units"))
      details.units.push_back(read_unit(unit));
  }
  if (const Json* const output = known_member(json, "output")) {
    details.output = OutputValue{string_member(kOperation, *output, "metric"),
                                 optional_integer(kOperation, *output, "target"),
                                 optional_integer(kOperation, *output, "distractor"),
                                 optional_number(kOperation, *output, "value_selected"),
                                 optional_number(kOperation, *output, "value_dense")};
  }
  const Json& policy = group(json, "policy");
  details.policy_version = optional_text(kOperation, policy, "version");
  details.policy_sha256 = optional_text(kOperation, policy, "sha256");
  details.policy_kind = optional_text(kOperation, policy, "kind");
  details.granularity = optional_text(kOperation, policy, "granularity");
  details.calibration_sha256 = optional_text(kOperation, policy, "calibration_sha256");
  for (const auto& [name, value] : group(policy, "parameters").items()) {
    details.policy_parameters.emplace_back(
        name, number_member(kOperation, policy.at("parameters"), name.c_str()));
  }
  details.predicted_loss = optional_number(kOperation, group(json, "budget"), "predicted_loss");
  details.pairs = kept_text(json, "pairs");
  const Json& trust = group(json, "trust");
  details.faithfulness = kept_text(trust, "faithfulness");
  details.simulatability = kept_text(trust, "simulatability");
  details.stability = kept_text(trust, "stability");
  details.agreement = kept_text(trust, "agreement");
  details.role_registry = optional_text(kOperation, trust, "registry_version");
  details.warnings = read_warnings(trust);
  if (details == RecordDetails()) return std::nullopt;
  return details;
}

void upgrade_record(Json& json) {
  if (const auto heads = json.find("heads"); heads != json.end() && heads->is_array()) {
    for (Json& head : *heads) {
      if (!head.is_object() || known_member(head, "why") == nullptr) continue;
      Json& why = head["why"];
      if (!why.is_object() || !why.contains("parts") || !why["parts"].is_array()) continue;
      for (Json& part : why["parts"]) {
        if (!part.is_object() || !part.contains("unit") || !part["unit"].is_string()) continue;
        part["feature"] = part["unit"];
        part.erase("unit");
      }
    }
  }
  // Schema 1 names what is missing and gives no reason; it is found again on writing.
  json["not_computed"] = Json::array();
}

Json unknown_members(const Json& read, const Json& written) {
  if (read.is_object() && written.is_object()) {
    Json kept;
    for (const auto& [name, value] : read.items()) {
      if (value.is_null()) continue;
      const auto there = written.find(name);
      Json part = there == written.end() ? value : unknown_members(value, *there);
      if (!part.is_null()) kept[name] = std::move(part);
    }
    return kept;
  }
  if (read.is_array() && written.is_array() && read.size() == written.size()) {
    Json kept = Json::array();
    bool any = false;
    for (size_t i = 0; i < read.size(); ++i) {
      kept.push_back(unknown_members(read[i], written[i]));
      any = any || !kept.back().is_null();
    }
    return any ? kept : Json(nullptr);
  }
  return nullptr;
}

void restore_members(Json& json, const Json& kept) {
  if (kept.is_object() && json.is_object()) {
    for (const auto& [name, value] : kept.items()) {
      if (const auto there = json.find(name); there == json.end() || there->is_null()) {
        json[name] = value;
      } else {
        restore_members(*there, value);
      }
    }
  } else if (kept.is_array() && json.is_array() && kept.size() == json.size()) {
    for (size_t i = 0; i < kept.size(); ++i) restore_members(json[i], kept[i]);
  }
}

}  // namespace headkit
