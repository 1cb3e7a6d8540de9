#pragma once

#include <string>

#include "core/json.h"

namespace headkit {

/// {"policy": name, "version": 1}.
Json policy_json(const char* name);
/// Parses `text` and checks its name and version.
Json read_policy_json(const char* name, const std::string& text);

}  // namespace headkit
