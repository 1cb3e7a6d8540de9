#include "headkit/explain/report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "headkit/explain/report_picture.h"
#include "headkit/explain/report_summary.h"

namespace headkit {
namespace {

using nlohmann::json;

json record() {
  json value{
      {"model", {{"name", "toy"}, {"layers", 2}, {"heads", 2}}},
      {"input", {{"id", 0}, {"length", 2}, {"units", {{{"text", "good"}}, {{"text", "film"}}}}}},
      {"policy", {{"name", "linear_gate"}}},
      {"budget", {{"flops_run", 5.0}, {"flops_dense", 10.0}}},
      {"output", {{"metric", "class_margin"}, {"target", "positive"}, {"value_selected", 1.5}}},
      {"heads", json::array()}};
  for (int place = 0; place < 4; ++place) {
    value["heads"].push_back(
        {{"layer", place / 2},
         {"head", place % 2},
         {"state", place == 1 ? "off" : "on"},
         {"gate", place == 1 ? 0.0 : 1.0},
         {"reason", "score"},
         {"margin", 0.1 * place},
         {"why",
          {{"base", 0.5},
           {"parts", {{{"unit", 1}, {"value", 0.25}}, {{"unit", 0}, {"value", -0.125}}}},
           {"rest", 0.5}}},
         {"attention", {{"data", std::string(4000, 'A')}}}});
  }
  return value;
}

json block(const std::string& page) {
  const std::string start = "id=\"data\">";
  const size_t from = page.find(start) + start.size();
  return json::parse(page.substr(from, page.find("</script>", from) - from));
}

TEST(Report, HoldsTheRecordAndNothingThatCanEndItsBlock) {
  json hostile = record();
  const std::string text = "</script><!--\u2028\u2029<img onerror=x>\u202eabc\U0001f600";
  hostile["input"]["units"][0]["text"] = text;
  hostile["policy"]["unknown <field>"] = text;
  const std::string page = html_report({hostile.dump()}, {.title = text});
  EXPECT_EQ(block(page)["records"][0], hostile);
  EXPECT_EQ(block(page)["title"], text);
  EXPECT_EQ(page.find("<img"), std::string::npos);
  EXPECT_EQ(page.find("\u2028"), std::string::npos);
}

TEST(Report, KeepsDetailOfTheHeadsThatMatterMost) {
  const json found = block(html_report({record().dump()}, {.detailed_heads = 1}));
  const json& heads = found["records"][0]["heads"];
  EXPECT_TRUE(heads[3]["attention"].is_object()) << "its margin is the largest";
  for (int place = 0; place < 3; ++place) {
    EXPECT_TRUE(heads[place]["attention"].is_null());
    EXPECT_TRUE(heads[place]["why"]["parts"].empty());
    EXPECT_EQ(heads[place]["why"]["rest"], 0.625) << "the sum stays";
  }
  EXPECT_EQ(found["left_out"].size(), 1u);

  json measured = record();
  measured["heads"][0]["effects"] = {{"toggle", {{"frozen", -2.0}}}};
  const json by_effect = block(html_report({measured.dump()}, {.detailed_heads = 1}));
  EXPECT_TRUE(by_effect["records"][0]["heads"][0]["attention"].is_object());
}

TEST(Report, LosesDetailUntilItFits) {
  const std::string whole = html_report({record().dump()});
  EXPECT_TRUE(block(whole)["left_out"].empty());
  const int64_t limit = static_cast<int64_t>(whole.size()) - 5000;
  const std::string page = html_report({record().dump()}, {.max_bytes = limit});
  EXPECT_LE(static_cast<int64_t>(page.size()), limit);
  EXPECT_EQ(block(page)["left_out"].size(), 1u);
  EXPECT_THROW(html_report({record().dump()}, {.max_bytes = 100}), std::invalid_argument);
}

TEST(Report, RefusesWhatItCannotShow) {
  const std::string good = record().dump();
  EXPECT_THROW(html_report({}), std::invalid_argument);
  EXPECT_THROW(html_report({good, good, good}), std::invalid_argument);
  EXPECT_THROW(html_report({"{}"}), std::invalid_argument);
  json swapped = record();
  std::swap(swapped["heads"][0], swapped["heads"][1]);
  EXPECT_THROW(html_report({swapped.dump()}), std::invalid_argument);
  EXPECT_THROW(html_report({good}, {.pictures = {"https://example.org/a.png"}}),
               std::invalid_argument);
  EXPECT_THROW(html_report({good}, {.pictures = {"data:image/svg+xml;base64,AA"}}),
               std::invalid_argument);
  EXPECT_EQ(block(html_report({good, good},
                              {.pictures = {"", "data:image/png;base64,AA=="}}))["pictures"],
            (json{nullptr, "data:image/png;base64,AA=="}));
}

TEST(ReportSummary, SaysWhatRanWhatCameOutAndWhy) {
  json value = record();
  value["heads"][0]["effects"] = {{"gate_gradient", -0.5}};
  const std::vector<SummaryLine> lines = summarise_record(value.dump());
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_EQ(lines[0].text, "3 of 4 heads on by linear_gate; 50 % of dense FLOPs.");
  EXPECT_EQ(lines[1].text, "class_margin +1.50 for positive.");
  EXPECT_EQ(
      lines[2].text,
      "L0H0 is on, estimated effect \u22120.50: margin +0.00, largest part \"film\" (+0.25).");
  EXPECT_EQ(lines[2].level, "L1");
}

TEST(ReportSummary, NeverShowsZeroForWhatIsMissing) {
  json value = record();
  value.erase("output");
  value.erase("budget");
  const std::vector<SummaryLine> lines = summarise_record(value.dump());
  EXPECT_EQ(lines[0].text, "3 of 4 heads on by linear_gate; FLOPs not computed.");
  EXPECT_EQ(lines[1].text, "No output metric was computed.");
}

TEST(ReportPicture, DrawsEveryHead) {
  json value = record();
  value["heads"][2]["state"] = "pruned";
  const std::string svg = report_picture(value.dump());
  EXPECT_EQ(svg.rfind("<svg", 0), 0u);
  EXPECT_NE(svg.find("3 of 4 heads on"), std::string::npos);
  size_t cells = 0;
  for (size_t at = svg.find("rx=\"3\""); at != std::string::npos;
       at = svg.find("rx=\"3\"", at + 1)) {
    ++cells;
  }
  EXPECT_EQ(cells, 5u) << "four heads, and the hatch of the one that is off";
  EXPECT_EQ(svg.find("<script"), std::string::npos);
}

}  // namespace
}  // namespace headkit
