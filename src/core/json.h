#pragma once

#include <ATen/core/Tensor.h>

#include <nlohmann/json.hpp>
#include <string>

namespace headkit {

using Json = nlohmann::json;

/// Parses `text`; std::invalid_argument `[operation] expected JSON ...` on anything else, including
/// nesting deeper than 64.
Json parse_json(const char* operation, const std::string& text);

/// The member `name` of an object; std::invalid_argument if `value` is no object or lacks it.
const Json& member(const char* operation, const Json& value, const char* name);

/// Typed members; std::invalid_argument for another type (a fraction is no integer, NaN no number).
int64_t integer_member(const char* operation, const Json& value, const char* name);
double number_member(const char* operation, const Json& value, const char* name);
std::string string_member(const char* operation, const Json& value, const char* name);

/// A floating-point tensor of any rank >= 1 as nested arrays; NaN and infinity are refused.
Json tensor_to_json(const char* operation, const at::Tensor& tensor);

/// Nested arrays of numbers as a double CPU tensor with `rank` axes, all rows of equal length.
at::Tensor tensor_from_json(const char* operation, const Json& value, int64_t rank);

}  // namespace headkit
