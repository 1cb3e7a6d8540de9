#include "core/json_members.h"

#include "headkit/core/error.h"

namespace headkit {

Json nullable(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }
Json nullable(const std::optional<int64_t>& value) { return value ? Json(*value) : Json(nullptr); }
Json nullable(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

Json nullable_interval(const std::optional<double>& lower, const std::optional<double>& upper) {
  return lower && upper ? Json{*lower, *upper} : Json(nullptr);
}

const Json* known_member(const Json& value, const char* name) {
  const auto place = value.find(name);
  return place == value.end() || place->is_null() ? nullptr : &*place;
}

std::optional<double> optional_number(const char* operation, const Json& value, const char* name) {
  if (known_member(value, name) == nullptr) return std::nullopt;
  return number_member(operation, value, name);
}

std::optional<int64_t> optional_integer(const char* operation, const Json& value,
                                        const char* name) {
  if (known_member(value, name) == nullptr) return std::nullopt;
  return integer_member(operation, value, name);
}

std::string optional_text(const char* operation, const Json& value, const char* name) {
  if (known_member(value, name) == nullptr) return {};
  return string_member(operation, value, name);
}

bool flag_member(const char* operation, const Json& value, const char* name) {
  const Json& flag = member(operation, value, name);
  HEADKIT_CHECK(flag.is_boolean(), operation, std::string("true or false as \"") + name + "\"",
                flag.type_name());
  return flag.get<bool>();
}

const Json& array_member(const char* operation, const Json& value, const char* name) {
  const Json& list = member(operation, value, name);
  HEADKIT_CHECK(list.is_array(), operation, std::string("an array as \"") + name + "\"",
                list.type_name());
  return list;
}

}  // namespace headkit
