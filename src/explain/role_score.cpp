#include "headkit/explain/role_score.h"

#include <algorithm>
#include <cmath>

#include "core/json_members.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kName[] = "role_table";
constexpr double kMostDropped = 0.5;

// Null for a role of another version of the registry.
const RoleInfo* known_role(const std::string& role) {
  const std::vector<RoleInfo>& all = role_registry();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const RoleInfo& each) { return each.role == role; });
  return found == all.end() ? nullptr : &*found;
}

bool is_low(const std::string& role) {
  const RoleInfo* info = known_role(role);
  return info != nullptr && info->low;
}

// What a label lacks; empty = nothing.
std::string lack_of(const RoleScore& score, const RoleInfo& info) {
  const double sign = info.low ? -1 : 1;
  if (!score.threshold) return "no threshold is known";
  if (sign * score.score < sign * *score.threshold) return "below the threshold";
  const std::optional<double> null = score.best_null();
  if (info.beats_null && null) {
    if (sign * (score.score - *null) < info.margin) return "too close to a null";
    const std::optional<double> bound = info.low ? score.upper : score.lower;
    if (info.convention == "weights" ? sign * score.score <= sign * *null
                                     : !bound || sign * *bound <= sign * *null) {
      return "its interval does not exceed every null";
    }
  }
  if (score.sequences < info.minimum_sequences || score.rows < info.minimum_rows) {
    return "too small a sample: " + std::to_string(score.sequences) + " sequences, " +
           std::to_string(score.rows) + " rows";
  }
  return {};
}

std::optional<double> optional_number(const Json& value, const char* name) {
  const Json& found = member(kName, value, name);
  return found.is_null() ? std::nullopt : std::optional(number_member(kName, value, name));
}

Json to_json(const RoleScore& score) {
  Json nulls = Json::array();
  for (const RoleNull& null : score.nulls) {
    nulls.push_back({{"name", null.name}, {"value", null.value}});
  }
  Json details = Json::array();
  for (const auto& [name, value] : score.details) {
    details.push_back({{"name", name}, {"value", value}});
  }
  return {{"role", score.role},
          {"variant", score.variant},
          {"formula", score.formula},
          {"score", score.assessed ? Json(score.score) : Json(nullptr)},
          {"interval", nullable_interval(score.lower, score.upper)},
          {"null", std::move(nulls)},
          {"margin", nullable(score.margin())},
          {"sample",
           {{"sequences", score.sequences}, {"rows", score.rows}, {"dropped", score.dropped_rows}}},
          {"excluded_mass", score.excluded_mass},
          {"threshold", nullable(score.threshold)},
          {"threshold_id", score.role + "/" + kRoleRegistryVersion},
          {"threshold_source", score.threshold_source},
          {"convention", score.convention},
          {"assessed", score.assessed},
          {"assigned", score.assigned},
          {"agrees", score.agrees ? Json(*score.agrees) : Json(nullptr)},
          {"reason", score.reason},
          {"level", score.level},
          {"details", std::move(details)}};
}

RoleScore score_from_json(const Json& json) {
  RoleScore score;
  score.role = string_member(kName, json, "role");
  score.variant = string_member(kName, json, "variant");
  score.formula = string_member(kName, json, "formula");
  if (const auto value = optional_number(json, "score")) score.score = *value;
  const Json& interval = member(kName, json, "interval");
  if (!interval.is_null()) {
    HEADKIT_CHECK(interval.is_array() && interval.size() == 2 && interval[0].is_number() &&
                      interval[1].is_number(),
                  kName, "two numbers as \"interval\"", interval.dump().substr(0, 60));
    score.lower = interval[0].get<double>();
    score.upper = interval[1].get<double>();
  }
  for (const Json& null : array_member(kName, json, "null")) {
    score.nulls.push_back(
        {string_member(kName, null, "name"), number_member(kName, null, "value")});
  }
  const Json& sample = member(kName, json, "sample");
  score.sequences = integer_member(kName, sample, "sequences");
  score.rows = integer_member(kName, sample, "rows");
  score.dropped_rows = integer_member(kName, sample, "dropped");
  score.excluded_mass = number_member(kName, json, "excluded_mass");
  score.threshold = optional_number(json, "threshold");
  score.threshold_source = string_member(kName, json, "threshold_source");
  score.convention = string_member(kName, json, "convention");
  score.assessed = flag_member(kName, json, "assessed");
  score.assigned = flag_member(kName, json, "assigned");
  if (!member(kName, json, "agrees").is_null()) score.agrees = flag_member(kName, json, "agrees");
  score.reason = string_member(kName, json, "reason");
  score.level = string_member(kName, json, "level");
  for (const Json& detail : array_member(kName, json, "details")) {
    score.details.emplace_back(string_member(kName, detail, "name"),
                               number_member(kName, detail, "value"));
  }
  return score;
}

}  // namespace

bool RoleScore::operator==(const RoleScore& other) const {
  const auto told = [](const RoleScore& s) {
    return std::tie(s.role, s.variant, s.formula, s.lower, s.upper, s.nulls, s.sequences, s.rows,
                    s.dropped_rows, s.excluded_mass, s.threshold, s.threshold_source, s.convention,
                    s.assessed, s.assigned, s.reason, s.agrees, s.level, s.details);
  };
  return told(*this) == told(other) &&
         (score == other.score || (std::isnan(score) && std::isnan(other.score)));
}

std::optional<double> RoleScore::best_null() const {
  if (nulls.empty()) return std::nullopt;
  const auto less = [](const RoleNull& a, const RoleNull& b) { return a.value < b.value; };
  return is_low(role) ? std::min_element(nulls.begin(), nulls.end(), less)->value
                      : std::max_element(nulls.begin(), nulls.end(), less)->value;
}

std::optional<double> RoleScore::margin() const {
  if (!assessed) return std::nullopt;
  const RoleInfo* info = known_role(role);
  const bool against_null = !nulls.empty() && (info == nullptr || info->beats_null);
  const std::optional<double> mark = against_null ? best_null() : threshold;
  if (!mark) return std::nullopt;
  return is_low(role) ? *mark - score : score - *mark;
}

void judge(RoleScore& score) {
  const RoleInfo& info = role_info(score.role);
  score.formula = info.formula;
  score.convention = info.convention;
  if (!score.threshold) score.threshold = info.threshold;
  score.threshold_source = info.threshold_source;
  score.assigned = false;
  const double all = static_cast<double>(score.rows + score.dropped_rows);
  if (static_cast<double>(score.dropped_rows) > kMostDropped * all) {
    score.assessed = false;
    score.reason = "more than half of the rows had nothing left after the exclusions";
  } else if (!std::isfinite(score.score)) {
    score.assessed = false;
    if (score.reason.empty()) score.reason = "no row to score";
  } else {
    score.assessed = true;
    score.reason = lack_of(score, info);
    score.assigned = score.reason.empty();
  }
  if (!score.assessed) {
    score.score = std::numeric_limits<double>::quiet_NaN();
    score.lower = score.upper = std::nullopt;
  }
}

const RoleScore* RoleTable::find(int64_t layer, int64_t head, const std::string& role,
                                 const std::string& variant) const {
  const auto& scores = heads.at(static_cast<size_t>(layer)).at(static_cast<size_t>(head));
  const auto found = std::find_if(scores.begin(), scores.end(), [&](const RoleScore& score) {
    return score.role == role && score.variant == variant;
  });
  return found == scores.end() ? nullptr : &*found;
}

std::vector<RoleScore> RoleTable::labels(int64_t layer, int64_t head) const {
  std::vector<RoleScore> found;
  for (const RoleScore& score :
       heads.at(static_cast<size_t>(layer)).at(static_cast<size_t>(head))) {
    if (score.assigned) found.push_back(score);
  }
  return found;
}

void RoleTable::add(int64_t layer, int64_t head, RoleScore score) {
  heads.resize(static_cast<size_t>(layout.layers));
  for (auto& row : heads) row.resize(static_cast<size_t>(layout.heads));
  heads.at(static_cast<size_t>(layer)).at(static_cast<size_t>(head)).push_back(std::move(score));
}

void RoleTable::rank() {
  constexpr double kLast = -std::numeric_limits<double>::infinity();
  const auto before = [&](const RoleScore& a, const RoleScore& b) {
    if (a.assessed != b.assessed) return a.assessed;
    return a.margin().value_or(kLast) > b.margin().value_or(kLast);
  };
  for (auto& layer : heads) {
    for (auto& scores : layer) std::stable_sort(scores.begin(), scores.end(), before);
  }
}

std::string RoleTable::to_json() const {
  Json rows = Json::array();
  for (const auto& layer : heads) {
    Json row = Json::array();
    for (const auto& scores : layer) {
      Json each = Json::array();
      for (const RoleScore& score : scores) each.push_back(headkit::to_json(score));
      row.push_back(std::move(each));
    }
    rows.push_back(std::move(row));
  }
  return Json{{"registry_version", registry_version},
              {"of", of},
              {"layout", parse_json(kName, layout.to_json())},
              {"sequences", sequences},
              {"confidence", confidence},
              {"seed", seed},
              {"roles", std::move(rows)},
              {"warnings", warnings}}
      .dump();
}

RoleTable RoleTable::from_json(const std::string& text) {
  const Json json = parse_json(kName, text);
  RoleTable table;
  table.registry_version = string_member(kName, json, "registry_version");
  table.of = string_member(kName, json, "of");
  HEADKIT_CHECK(table.of == "dataset" || table.of == "input", kName,
                "roles of a dataset or an input", "'", table.of, "'");
  table.layout = HeadLayout::from_json(member(kName, json, "layout").dump());
  table.sequences = integer_member(kName, json, "sequences");
  table.confidence = number_member(kName, json, "confidence");
  const Json& seed = member(kName, json, "seed");
  HEADKIT_CHECK(seed.is_number_unsigned(), kName, "a whole number >= 0 as \"seed\"", seed.dump());
  table.seed = seed.get<uint64_t>();
  const Json& rows = array_member(kName, json, "roles");
  HEADKIT_CHECK(static_cast<int64_t>(rows.size()) == table.layout.layers, kName,
                "roles of " + std::to_string(table.layout.layers) + " layers", rows.size());
  for (const Json& row : rows) {
    HEADKIT_CHECK(row.is_array() && static_cast<int64_t>(row.size()) == table.layout.heads, kName,
                  "roles of " + std::to_string(table.layout.heads) + " heads in each layer",
                  row.size());
    auto& layer = table.heads.emplace_back();
    for (const Json& scores : row) {
      HEADKIT_CHECK(scores.is_array(), kName, "an array of roles", scores.type_name());
      auto& head = layer.emplace_back();
      for (const Json& score : scores) head.push_back(score_from_json(score));
    }
  }
  for (const Json& warning : array_member(kName, json, "warnings")) {
    HEADKIT_CHECK(warning.is_string(), kName, "texts as \"warnings\"", warning.type_name());
    table.warnings.push_back(warning.get<std::string>());
  }
  return table;
}

}  // namespace headkit
