#include "gates/policy_json.h"

#include "headkit/core/error.h"

namespace headkit {

Json policy_json(const char* name, int64_t version) {
  return {{"policy", name}, {"version", version}};
}

Json read_policy_json(const char* name, const std::string& text, int64_t newest) {
  Json json = parse_json(name, text);
  const std::string found = string_member(name, json, "policy");
  HEADKIT_CHECK(found == name, name, std::string("a policy named ") + name, found);
  const int64_t version = integer_member(name, json, "version");
  HEADKIT_CHECK(version >= 1 && version <= newest, name,
                "version " + std::to_string(newest) + ", as this headkit writes", version);
  return json;
}

}  // namespace headkit
