#include "core/method_settings.h"

#include <algorithm>

#include "headkit/core/error.h"

namespace headkit {

MethodSettings::MethodSettings(std::string method, const std::string& json, const char* operation)
    : method_(std::move(method)), operation_(operation), values_(parse_json(operation, json)) {
  HEADKIT_CHECK(values_.is_object(), operation_, "an object of settings", json);
}

void MethodSettings::fail(const char* name, const char* expected, const Json& found) const {
  throw std::invalid_argument(
      error_message(operation_, std::string(expected) + " as " + name + " of " + method_,
                    found.dump(-1, ' ', false, Json::error_handler_t::replace)));
}

const Json* MethodSettings::given(const char* name, const Json& standard, const char* meaning) {
  known_.push_back({name, meaning, standard.dump()});
  const auto found = values_.find(name);
  return found == values_.end() ? nullptr : &*found;
}

void MethodSettings::read(const char* name, bool& value, const char* meaning) {
  if (const Json* found = given(name, value, meaning)) {
    if (!found->is_boolean()) fail(name, "true or false", *found);
    value = found->get<bool>();
  }
}

void MethodSettings::read(const char* name, int64_t& value, const char* meaning) {
  if (const Json* found = given(name, value, meaning)) {
    if (!found->is_number_integer()) fail(name, "a whole number", *found);
    value = found->get<int64_t>();
  }
}

void MethodSettings::read(const char* name, uint64_t& value, const char* meaning) {
  if (const Json* found = given(name, value, meaning)) {
    if (!found->is_number_unsigned()) fail(name, "a whole number from 0", *found);
    value = found->get<uint64_t>();
  }
}

void MethodSettings::read(const char* name, double& value, const char* meaning) {
  if (const Json* found = given(name, value, meaning)) {
    if (!found->is_number()) fail(name, "a number", *found);
    value = found->get<double>();
  }
}

void MethodSettings::read(const char* name, std::string& value, const char* meaning) {
  if (const Json* found = given(name, value, meaning)) {
    if (!found->is_string()) fail(name, "a string", *found);
    value = found->get<std::string>();
  }
}

void MethodSettings::read(const char* name, std::vector<double>& value, const char* meaning) {
  if (const Json* found = given(name, value, meaning)) {
    const bool numbers =
        found->is_array() &&
        std::all_of(found->begin(), found->end(), [](const Json& x) { return x.is_number(); });
    if (!numbers) fail(name, "a list of numbers", *found);
    value = found->get<std::vector<double>>();
  }
}

std::string MethodSettings::unread() const {
  Json rest = values_;
  for (const SettingInfo& each : known_) rest.erase(each.name);
  return rest.dump();
}

void MethodSettings::check_all_read() const {
  std::string names;
  for (const SettingInfo& each : known_) names += (names.empty() ? "" : ", ") + each.name;
  for (const auto& [name, value] : values_.items()) {
    HEADKIT_CHECK(
        std::any_of(known_.begin(), known_.end(),
                    [&, &setting = name](const SettingInfo& each) { return each.name == setting; }),
        operation_,
        names.empty() ? "no settings for " + method_ : "settings of " + method_ + " among " + names,
        "'", name, "'");
  }
}

}  // namespace headkit
