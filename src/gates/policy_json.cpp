#include "gates/policy_json.h"

#include "headkit/core/error.h"

namespace headkit {
namespace {
constexpr int64_t kVersion = 1;
}

Json policy_json(const char* name) { return {{"policy", name}, {"version", kVersion}}; }

Json read_policy_json(const char* name, const std::string& text) {
  Json json = parse_json(name, text);
  const std::string found = string_member(name, json, "policy");
  HEADKIT_CHECK(found == name, name, std::string("a policy named ") + name, found);
  const int64_t version = integer_member(name, json, "version");
  HEADKIT_CHECK(version == kVersion, name,
                "version " + std::to_string(kVersion) + ", as this headkit writes", version);
  return json;
}

}  // namespace headkit
