#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace headkit {

/// Version of the registry: it rises with every formula, threshold or minimum that changes.
inline constexpr const char* kRoleRegistryVersion = "1";

/// What is known of one role before any data are seen. Thresholds are data: a cited one applies to
/// the row convention that it was measured with.
struct RoleInfo {
  std::string role;
  std::string formula;          ///< id of the formula, changed with it
  std::string definition;       ///< in words
  std::string convention;       ///< "raw", "renormalised" rows, or "weights" where no row is read
  std::string exclusions = {};  ///< keys that are taken out; empty = none
  std::optional<double> threshold = {};  ///< a label needs at least that; unset = no label
  double margin = 0;                     ///< and that much more than the best null
  std::string threshold_source = {};
  int64_t minimum_sequences = 50;
  int64_t minimum_rows = 1000;  ///< query rows; of syntactic roles arcs
  std::string modality = "text";
  bool low = false;        ///< the role is a low score: all comparisons are mirrored
  bool beats_null = true;  ///< a label needs a lower bound above the best null
  std::string caution = {};
};

/// All roles, each a line of the registry's source.
const std::vector<RoleInfo>& role_registry();
/// Throws std::invalid_argument, naming the known ones, for an unknown role.
const RoleInfo& role_info(const std::string& role);

/// To be printed beside every role.
const std::vector<std::string>& role_warnings();

}  // namespace headkit
