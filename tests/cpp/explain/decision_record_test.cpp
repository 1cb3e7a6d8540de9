#include "headkit/explain/decision_record.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace headkit {
namespace {

DecisionRecord some_record() {
  DecisionRecord record;
  record.library_version = "0.1.0";
  record.layout = {1, 2, 3, 4, 5};
  record.input = 7;
  record.tokens = 3;
  record.policy = "linear_gate";
  record.mode = "dynamic";
  record.reference = "calibration_mean";
  record.heads_run = 1;
  // The example of explanations.md: 0.21 + 0.94 + 0.31 + 0.05 = 1.51, and 1.51 - 0.40 = 1.11.
  HeadDecision on;
  on.state = "on";
  on.gate = 0.82;
  on.reason = "score";
  on.logit = 1.51;
  on.threshold = 0.40;
  on.margin = 1.11;
  on.base = 0.21;
  on.parts = {{7, 0.94}, {2, 0.31}};
  on.rest = 0.05;
  on.residual = 0.0;
  HeadDecision off;
  off.head = 1;
  off.state = "off";
  record.heads = {on, off};
  return record;
}

TEST(DecisionRecord, RoundTripsOnOneLine) {
  const DecisionRecord record = some_record();
  const std::string text = record.to_json();
  EXPECT_EQ(text.find('\n'), std::string::npos);
  EXPECT_EQ(DecisionRecord::from_json(text), record);
  EXPECT_EQ(record.active(), 1);
  EXPECT_TRUE(at::allclose(record.gates(), at::tensor({0.82f, 0.0f}).reshape({1, 2})));
}

TEST(DecisionRecord, WritesTheFieldsOfTheSchemaAndNamesWhatIsMissing) {
  const auto json = nlohmann::json::parse(some_record().to_json());
  EXPECT_EQ(json["schema_version"], kRecordSchema);
  EXPECT_EQ(json["library"]["name"], "headkit");
  EXPECT_EQ(json["budget"]["active"], 1);
  EXPECT_EQ(json["budget"]["total"], 2);
  EXPECT_EQ(json["heads"][0]["why"]["parts"][0]["unit"], 7);
  EXPECT_TRUE(json["heads"][1]["logit"].is_null());
  EXPECT_TRUE(json["heads"][1]["why"].is_null());
  EXPECT_TRUE(json["budget"]["flops_run"].is_null());
  const auto missing = json["not_computed"].get<std::vector<std::string>>();
  EXPECT_NE(std::find(missing.begin(), missing.end(), "budget.flops_run"), missing.end());
  EXPECT_NE(std::find(missing.begin(), missing.end(), "model.weights_sha256"), missing.end());
}

TEST(DecisionRecord, KeepsFieldsItDoesNotKnow) {
  auto json = nlohmann::json::parse(some_record().to_json());
  json["faithfulness"] = {{"aopc", 0.5}};
  json["schema_version"] = "1.9";
  const auto again = nlohmann::json::parse(DecisionRecord::from_json(json.dump()).to_json());
  EXPECT_EQ(again["faithfulness"]["aopc"], 0.5);
}

TEST(DecisionRecord, RefusesWhatIsNoRecord) {
  DecisionRecord record = some_record();
  record.heads[0].logit = NAN;
  EXPECT_THROW(record.to_json(), std::invalid_argument);
  record = some_record();
  record.heads[0].parts[0].value = INFINITY;
  EXPECT_THROW(record.to_json(), std::invalid_argument);
  record = some_record();
  record.heads[1].state = "kept";
  EXPECT_THROW(record.to_json(), std::invalid_argument);
  record = some_record();
  record.heads.pop_back();
  EXPECT_THROW(record.to_json(), std::invalid_argument);
  EXPECT_THROW(record.gates(), std::invalid_argument);
  record = some_record();
  std::swap(record.heads[0], record.heads[1]);
  EXPECT_THROW(record.to_json(), std::invalid_argument);
  auto json = nlohmann::json::parse(some_record().to_json());
  json["schema_version"] = "2.0";
  EXPECT_THROW(DecisionRecord::from_json(json.dump()), std::invalid_argument);
  for (const char* text : {"", "[]", "{}", R"({"schema_version": "1.0"})"}) {
    EXPECT_THROW(DecisionRecord::from_json(text), std::invalid_argument) << text;
  }
}

TEST(DecisionRecord, ReadsLinesAndNamesABadOne) {
  const std::string line = some_record().to_json();
  EXPECT_EQ(read_decision_records(line + "\n\n" + line + "\n").size(), 2u);
  EXPECT_TRUE(read_decision_records("").empty());
  try {
    read_decision_records(line + "\n{}\n");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()).find("line 2"), 0u) << error.what();
  }
}

}  // namespace
}  // namespace headkit
