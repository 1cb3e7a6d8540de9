#pragma once

#include <string>

namespace headkit {

/// A setting of a method, as registries tell of it.
struct SettingInfo {
  std::string name;
  std::string meaning;
  std::string standard;  ///< what it is when not given, as JSON
};

}  // namespace headkit
