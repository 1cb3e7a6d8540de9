#pragma once

#include <string>

#include "core/json.h"

namespace headkit {

/// {"policy": name, "version": version}.
Json policy_json(const char* name, int64_t version = 1);
/// Parses `text` and checks its name, and that its version is from 1 to `newest`.
Json read_policy_json(const char* name, const std::string& text, int64_t newest = 1);

}  // namespace headkit
