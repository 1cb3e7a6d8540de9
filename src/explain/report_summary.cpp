#include "headkit/explain/report_summary.h"

#include <algorithm>
#include <cmath>

#include "explain/record_view.h"

namespace headkit {
namespace {

constexpr const char* kOperation = "summarise_record";
constexpr size_t kHeads = 3;

std::string percent(double share) { return std::to_string(std::lround(100 * share)) + " %"; }

SummaryLine what_ran(const Json& record) {
  const Json& heads = record.at("heads");
  const auto on = std::count_if(heads.begin(), heads.end(), [](const Json& head) {
    return head.at("gate").get<double>() != 0;
  });
  std::string text = std::to_string(on) + " of " + std::to_string(heads.size()) + " heads on";
  if (const std::string policy = text_at(record, {"policy", "name"}); !policy.empty()) {
    text += " by " + policy;
  }
  auto flops = number_at(record, {"budget", "flops_selected"});
  if (!flops) flops = number_at(record, {"budget", "flops_run"});
  const auto dense = number_at(record, {"budget", "flops_dense"});
  text += flops && dense && *dense > 0 ? "; " + percent(*flops / *dense) + " of dense FLOPs"
                                       : "; FLOPs not computed";
  return {text + ".", ""};
}

// The name of a class or token, else its number.
std::string class_name(const Json& record, const std::string& which) {
  std::string name = text_at(record, {"output", (which + "_name").c_str()});
  if (name.empty()) name = text_at(record, {"output", which.c_str()});
  const auto number = number_at(record, {"output", which.c_str()});
  return name.empty() && number ? std::to_string(std::lround(*number)) : name;
}

SummaryLine what_came_out(const Json& record) {
  const std::string metric = text_at(record, {"output", "metric"});
  const auto value = number_at(record, {"output", "value_selected"});
  if (metric.empty() || !value) return {"No output metric was computed.", ""};
  std::string text = metric + " " + shown(*value, true);
  if (const std::string of = class_name(record, "target"); !of.empty()) text += " for " + of;
  if (const std::string other = class_name(record, "distractor"); !other.empty()) {
    text += " against " + other;
  }
  if (const auto whole = number_at(record, {"output", "value_dense"})) {
    text += "; with all heads " + shown(*whole, true);
  }
  return {text + ".", ""};
}

std::string main_role(const Json& head) {
  const auto roles = head.find("roles");
  if (roles == head.end() || !roles->is_object() || !roles->contains("dataset")) return "";
  for (const Json& role : roles->at("dataset")) {
    if (role.value("assigned", false)) return text_at(role, {"role"});
  }
  return "";
}

SummaryLine about_head(const Json& record, const Json& head) {
  const std::string state = head.at("state").get<std::string>();
  std::string text = head_name(head) + " is " +
                     (state == "always_on" ? "always on"
                      : state == "pruned"  ? "removed"
                                           : state);
  std::string level;
  if (const auto effect = shown_effect(head)) {
    text += std::string(", ") + effect->name + " " + shown(effect->value, true);
    level = effect->level;
  }
  const auto margin = number_at(head, {"margin"});
  const auto why = head.find("why");
  if (margin && why != head.end() && why->is_object() && why->contains("parts") &&
      !why->at("parts").empty()) {
    const Json& part = why->at("parts").front();
    text += ": margin " + shown(*margin, true) + ", largest part " + unit_name(record, part) +
            " (" + shown(part.at("value").get<double>(), true) + ")";
    if (level.empty()) level = "L1";
  } else if (margin) {
    text += ": margin " + shown(*margin, true);
  } else if (const std::string reason = text_at(head, {"reason"}); !reason.empty()) {
    text += ": decided by " + reason;
  }
  if (const std::string role = main_role(head); !role.empty()) text += "; role " + role;
  return {text + ".", level};
}

}  // namespace

std::vector<SummaryLine> summarise_record(const std::string& text) {
  const Json record = parse_record(kOperation, text);
  std::vector<SummaryLine> lines{what_ran(record), what_came_out(record)};
  const std::vector<size_t> order = heads_by_weight(record);
  for (size_t n = 0; n < std::min(kHeads, order.size()); ++n) {
    lines.push_back(about_head(record, record.at("heads")[order[n]]));
  }
  return lines;
}

}  // namespace headkit
