#include "headkit/explain/report.h"

#include <algorithm>

#include "explain/record_view.h"
#include "explain/report_page.h"
#include "headkit/core/error.h"
#include "headkit/explain/report_summary.h"

namespace headkit {
namespace {

constexpr const char* kOperation = "html_report";
constexpr size_t kMostRecords = 2;

// Only ASCII, and no `<`: nothing can end the block, and U+2028 and U+2029 are escapes.
std::string script_safe(const Json& value) {
  std::string text;
  const std::string dumped = value.dump(-1, ' ', true);
  text.reserve(dumped.size());
  for (const char c : dumped) {
    if (c == '<') {
      text += "\\u003c";
    } else {
      text += c;
    }
  }
  return text;
}

bool has_detail(const Json& head) {
  const auto attention = head.find("attention");
  return attention != head.end() && attention->is_object();
}

// Takes attention and parts from all but the `kept` heads that matter most.
Json shortened(const Json& record, size_t kept) {
  const std::vector<size_t> order = heads_by_weight(record);
  Json result = record;
  for (size_t n = kept; n < order.size(); ++n) {
    Json& head = result.at("heads")[order[n]];
    if (has_detail(head)) head.at("attention") = nullptr;
    const auto why = head.find("why");
    if (why == head.end() || !why->is_object() || !why->contains("parts")) continue;
    double rest = number_at(*why, {"rest"}).value_or(0);
    for (const Json& part : why->at("parts")) rest += number_at(part, {"value"}).value_or(0);
    why->at("parts") = Json::array();
    why->at("rest") = rest;
  }
  return result;
}

void check_picture(const std::string& picture) {
  if (picture.empty()) return;
  const std::string_view start = std::string_view(picture).substr(0, picture.find(','));
  HEADKIT_CHECK(start == "data:image/png;base64" || start == "data:image/jpeg;base64", kOperation,
                "pictures as data:image/png;base64,... or data:image/jpeg;base64,...",
                picture.substr(0, 40));
}

std::string page_of(const std::vector<Json>& records, const std::vector<std::string>& texts,
                    const ReportOptions& options, size_t kept) {
  Json data{{"title", options.title}, {"records", Json::array()}, {"left_out", Json::array()}};
  Json summaries = Json::array();
  Json pictures = Json::array();
  bool shorter = false;
  for (size_t n = 0; n < records.size(); ++n) {
    shorter = shorter || kept < records[n].at("heads").size();
    data["records"].push_back(shortened(records[n], kept));
    Json lines = Json::array();
    for (const SummaryLine& line : summarise_record(texts[n])) {
      lines.push_back({{"text", line.text}, {"level", line.level}});
    }
    summaries.push_back(std::move(lines));
    const bool there = n < options.pictures.size() && !options.pictures[n].empty();
    pictures.push_back(there ? Json(options.pictures[n]) : Json(nullptr));
  }
  if (shorter) {
    data["left_out"].push_back(
        "To keep the page small, attention and the parts of gate logits are kept for the " +
        std::to_string(kept) +
        " heads that matter most; the parts of the others are in their rest.");
  }
  data["summaries"] = std::move(summaries);
  data["pictures"] = std::move(pictures);
  return kReportPageBefore + script_safe(data) + kReportPageAfter;
}

}  // namespace

std::string html_report(const std::vector<std::string>& records, const ReportOptions& options) {
  HEADKIT_CHECK(!records.empty() && records.size() <= kMostRecords, kOperation,
                "one record, or two to compare", records.size());
  HEADKIT_CHECK(options.pictures.size() <= records.size(), kOperation,
                "at most one picture for each record", options.pictures.size(), " for ",
                records.size());
  for (const std::string& picture : options.pictures) check_picture(picture);
  std::vector<Json> parsed;
  size_t most = 0;
  for (const std::string& text : records) {
    parsed.push_back(parse_record(kOperation, text));
    most = std::max(most, parsed.back().at("heads").size());
  }
  size_t kept = options.detailed_heads < 0
                    ? most
                    : std::min(most, static_cast<size_t>(options.detailed_heads));
  for (;;) {
    std::string page = page_of(parsed, records, options, kept);
    if (static_cast<int64_t>(page.size()) <= options.max_bytes) return page;
    HEADKIT_CHECK(kept > 0, kOperation,
                  c10::str("records that fit a page of ", options.max_bytes, " bytes"), page.size(),
                  " without the detail of any head");
    kept = kept * 3 / 4;
  }
}

}  // namespace headkit
