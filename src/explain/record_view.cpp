#include "explain/record_view.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "headkit/core/error.h"

namespace headkit {

Json parse_record(const char* operation, const std::string& text) {
  Json record = parse_json(operation, text);
  const Json& model = member(operation, record, "model");
  const int64_t layers = integer_member(operation, model, "layers");
  const int64_t heads = integer_member(operation, model, "heads");
  const Json& decisions = member(operation, record, "heads");
  member(operation, record, "input");
  member(operation, record, "policy");
  HEADKIT_CHECK(layers > 0 && heads > 0 && decisions.is_array() &&
                    decisions.size() == static_cast<size_t>(layers * heads),
                operation, "a decision for every head of the model", decisions.size(), " for ",
                layers, " layers of ", heads);
  for (size_t place = 0; place < decisions.size(); ++place) {
    const Json& head = decisions[place];
    HEADKIT_CHECK(integer_member(operation, head, "layer") * heads +
                          integer_member(operation, head, "head") ==
                      static_cast<int64_t>(place),
                  operation, "heads by layer, then head", "another at place ", place);
    string_member(operation, head, "state");
    number_member(operation, head, "gate");
  }
  return record;
}

namespace {

const Json* find(const Json& value, const std::vector<const char*>& path) {
  const Json* found = &value;
  for (const char* name : path) {
    if (!found->is_object()) return nullptr;
    const auto next = found->find(name);
    if (next == found->end()) return nullptr;
    found = &*next;
  }
  return found;
}

}  // namespace

std::optional<double> number_at(const Json& value, const std::vector<const char*>& path) {
  const Json* found = find(value, path);
  if (found == nullptr || !found->is_number()) return std::nullopt;
  return found->get<double>();
}

std::string text_at(const Json& value, const std::vector<const char*>& path) {
  const Json* found = find(value, path);
  return found != nullptr && found->is_string() ? found->get<std::string>() : "";
}

std::optional<ShownEffect> shown_effect(const Json& head) {
  if (const auto value = number_at(head, {"effects", "toggle", "frozen"})) {
    return ShownEffect{"measured effect", "L2", *value};
  }
  if (const auto value = number_at(head, {"effects", "integrated_gate_gradient"})) {
    return ShownEffect{"integrated gate gradient", "L1", *value};
  }
  if (const auto value = number_at(head, {"effects", "gate_gradient"})) {
    return ShownEffect{"estimated effect", "L1", *value};
  }
  if (const auto value = number_at(head, {"effects", "direct"})) {
    return ShownEffect{"direct effect", "L1", *value};
  }
  return std::nullopt;
}

std::vector<size_t> heads_by_weight(const Json& record) {
  const Json& heads = record.at("heads");
  const bool measured = std::any_of(
      heads.begin(), heads.end(), [](const Json& head) { return shown_effect(head).has_value(); });
  std::vector<double> weight;
  for (const Json& head : heads) {
    const auto effect = shown_effect(head);
    weight.push_back(measured ? (effect ? std::abs(effect->value) : -1)
                              : std::abs(number_at(head, {"margin"}).value_or(-1e-30)));
  }
  std::vector<size_t> order(heads.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return weight[a] > weight[b]; });
  return order;
}

std::string head_name(const Json& head) {
  return "L" + std::to_string(head.at("layer").get<int64_t>()) + "H" +
         std::to_string(head.at("head").get<int64_t>());
}

std::string unit_name(const Json& record, const Json& part) {
  if (const std::string feature = text_at(part, {"feature"}); !feature.empty()) return feature;
  const auto unit = part.find("unit");
  if (unit == part.end()) return "a part";
  if (unit->is_string()) return unit->get<std::string>();
  if (!unit->is_number_integer()) return "a part";
  const int64_t place = unit->get<int64_t>();
  const Json* units = find(record, {"input", "units"});
  if (units != nullptr && units->is_array() && place >= 0 &&
      place < static_cast<int64_t>(units->size())) {
    if (const std::string text = text_at((*units)[static_cast<size_t>(place)], {"text"});
        !text.empty()) {
      return "\"" + text + "\"";
    }
  }
  return "token " + std::to_string(place);
}

std::string shown(double value, bool sign) {
  const double size = std::abs(value);
  char text[48];
  std::snprintf(text, sizeof text, size == 0 || (size >= 0.01 && size < 1e4) ? "%.2f" : "%.2g",
                size);
  return std::string(value < 0 ? "\u2212" : sign ? "+" : "") + text;
}

}  // namespace headkit
