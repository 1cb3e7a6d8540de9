#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/json.h"

namespace headkit {

/// null where there is no value.
Json nullable(const std::optional<double>& value);
Json nullable(const std::optional<int64_t>& value);
Json nullable(const std::string& text);
/// Two numbers; null where one is missing.
Json nullable_interval(const std::optional<double>& lower, const std::optional<double>& upper);

/// The member `name` of an object; nullptr where it is missing or null.
const Json* known_member(const Json& value, const char* name);
/// Typed members that may be missing or null; std::invalid_argument for another type.
std::optional<double> optional_number(const char* operation, const Json& value, const char* name);
std::optional<int64_t> optional_integer(const char* operation, const Json& value, const char* name);
std::string optional_text(const char* operation, const Json& value, const char* name);

/// Typed members; std::invalid_argument if they are missing or of another type.
bool flag_member(const char* operation, const Json& value, const char* name);
const Json& array_member(const char* operation, const Json& value, const char* name);

}  // namespace headkit
