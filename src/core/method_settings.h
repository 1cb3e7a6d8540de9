#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "headkit/core/setting_info.h"

namespace headkit {

/// The settings of a method as a JSON object, read one by one into its options: what is read is
/// what is known. An empty object leaves the options as they are, and tells what there is to set.
class MethodSettings {
 public:
  /// Throws std::invalid_argument unless `json` is an object. `operation`: of error messages.
  MethodSettings(std::string method, const std::string& json, const char* operation = "prune");

  /// Each throws std::invalid_argument for a value of another type.
  void read(const char* name, bool& value, const char* meaning);
  void read(const char* name, int64_t& value, const char* meaning);
  void read(const char* name, uint64_t& value, const char* meaning);
  void read(const char* name, double& value, const char* meaning);
  void read(const char* name, std::string& value, const char* meaning);
  void read(const char* name, std::vector<double>& value, const char* meaning);
  /// Throws std::invalid_argument if a setting is left that nothing read.
  void check_all_read() const;

  /// JSON object of those that nothing read.
  std::string unread() const;

  const std::vector<SettingInfo>& known() const { return known_; }

 private:
  const Json* given(const char* name, const Json& standard, const char* meaning);
  [[noreturn]] void fail(const char* name, const char* expected, const Json& found) const;

  std::string method_;
  const char* operation_;
  Json values_;
  std::vector<SettingInfo> known_;
};

}  // namespace headkit
