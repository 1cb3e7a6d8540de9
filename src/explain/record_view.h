#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/json.h"

namespace headkit {

/// A decision record as it is shown: its JSON, checked for what every page and picture reads.
/// std::invalid_argument `[operation] expected ...` on text that is no record.
Json parse_record(const char* operation, const std::string& text);

/// A number below `value` along `path`; empty where there is none.
std::optional<double> number_at(const Json& value, const std::vector<const char*>& path);
std::string text_at(const Json& value, const std::vector<const char*>& path);

/// The effect of a head on m by the best evidence there is: toggle, integrated gate gradient, gate
/// gradient, direct effect. Empty where none was computed.
struct ShownEffect {
  const char* name;
  const char* level;
  double value;
};
std::optional<ShownEffect> shown_effect(const Json& head);

/// Places of the heads, those that matter most first: by the size of their effect, else of their
/// margin; ties by layer, then head.
std::vector<size_t> heads_by_weight(const Json& record);

std::string head_name(const Json& head);  ///< for example L5H3
std::string unit_name(const Json& record, const Json& part);
/// Two decimals, or two digits where that says nothing.
std::string shown(double value, bool sign = false);

}  // namespace headkit
