#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "headkit/core/head_layout.h"
#include "headkit/explain/role_registry.h"

namespace headkit {

/// What a score is without the role, by one way to leave the role out.
struct RoleNull {
  /// uniform, best_offset, shuffle (mean over draws), best_of_n (95 % quantile over draws of the
  /// best head's shuffled score), or a role's own.
  std::string name;
  double value = 0;
  bool operator==(const RoleNull&) const = default;
};

/// How well one head fits one role.
struct RoleScore {
  std::string role;     ///< registry name
  std::string variant;  ///< which of several of the role: an offset, a delimiter, a relation; or ""
  std::string formula;
  double score = std::numeric_limits<double>::quiet_NaN();  ///< NaN where not assessed
  std::optional<double> lower, upper;  ///< 95 % bootstrap over sequences; unset = unknown
  std::vector<RoleNull> nulls;
  int64_t sequences = 0;     ///< that hold at least one row of the score
  int64_t rows = 0;          ///< that the score is over
  int64_t dropped_rows = 0;  ///< left out, for less than 1e-3 of their mass was left
  double excluded_mass = 0;  ///< mean over rows of what was taken out
  std::optional<double> threshold;
  std::string threshold_source;
  std::string convention;      ///< raw, renormalised or weights
  bool assessed = false;       ///< not assessed is not a low score
  bool assigned = false;       ///< the head gets the label; never from one input
  std::string reason;          ///< why not assessed, or what a label lacks; empty = assigned
  std::optional<bool> agrees;  ///< of one input: with the data set's verdict
  std::string level = "L0";    ///< of evidence
  std::vector<std::pair<std::string, double>> details;  ///< what else is told of the head
  bool operator==(const RoleScore& other) const;

  /// The largest null, the smallest for a role that is a low score; unset without nulls.
  std::optional<double> best_null() const;
  /// Distance of the score from the best null towards the role; without nulls, or where the null
  /// need not be beaten, from the threshold; unset where there is neither, or no score.
  std::optional<double> margin() const;
};

/// Fills in what the registry says of the role (formula, threshold, convention) and whether the
/// score earns the label: threshold, margin, interval beyond the best null, minimum sample, at most
/// half of the rows dropped.
void judge(RoleScore& score);

/// Roles of every head.
struct RoleTable {
  std::string registry_version = kRoleRegistryVersion;
  std::string of = "dataset";  ///< or "input": scores without interval or label, with `agrees`
  HeadLayout layout;
  int64_t sequences = 0;
  double confidence = 0.95;
  uint64_t seed = 0;
  /// [layer][head], each ranked: assessed first, then by margin over the best null.
  std::vector<std::vector<std::vector<RoleScore>>> heads;
  std::vector<std::string> warnings;

  /// Null if the head has no such score.
  const RoleScore* find(int64_t layer, int64_t head, const std::string& role,
                        const std::string& variant = "") const;
  /// The roles a head is labelled with, best first.
  std::vector<RoleScore> labels(int64_t layer, int64_t head) const;
  /// Puts a score in its place. Throws std::out_of_range for a head outside the layout.
  void add(int64_t layer, int64_t head, RoleScore score);
  void rank();

  std::string to_json() const;
  /// Throws std::invalid_argument on anything that `to_json` does not write.
  static RoleTable from_json(const std::string& text);
};

}  // namespace headkit
