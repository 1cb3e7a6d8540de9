#include "headkit/explain/decision_record.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "headkit/explain/head_explanation.h"
#include "headkit/explain/record_details.h"

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
  std::map<std::string, std::string> missing;
  for (const auto& each : json["not_computed"]) missing[each["field"]] = each["reason"];
  EXPECT_EQ(missing.count("budget.flops_run"), 1u);
  EXPECT_EQ(missing.count("model.weights_sha256"), 1u);
  EXPECT_EQ(missing["heads.roles"], "not asked for");
}

TEST(DecisionRecord, KeepsFieldsItDoesNotKnow) {
  auto json = nlohmann::json::parse(some_record().to_json());
  json["mood"] = {{"colour", 0.5}};
  json["model"]["owner"] = "us";
  json["heads"][1]["shape"] = {1, 2};
  json["heads"][0]["why"]["parts"][1]["note"] = true;
  json["schema_version"] = "2.9";
  const DecisionRecord read = DecisionRecord::from_json(json.dump());
  const auto again = nlohmann::json::parse(read.to_json());
  EXPECT_EQ(again["mood"]["colour"], 0.5);
  EXPECT_EQ(again["model"]["owner"], "us");
  EXPECT_EQ(again["heads"][1]["shape"][1], 2);
  EXPECT_EQ(again["heads"][0]["why"]["parts"][1]["note"], true);
  EXPECT_EQ(DecisionRecord::from_json(read.to_json()), read);
}

TEST(DecisionRecord, ReadsLinesOfSchemaOne) {
  DecisionRecord record = some_record();
  record.heads[0].parts[1] = {-1, 0.31, "log_length"};
  auto json = nlohmann::json::parse(record.to_json());
  json["schema_version"] = "1.1";
  json["heads"][0]["why"]["parts"][1] = {{"unit", "log_length"}, {"value", 0.31}};
  json["not_computed"] = {"budget.flops_run", "heads.why"};
  EXPECT_EQ(DecisionRecord::from_json(json.dump()), record);
}

TEST(DecisionRecord, HoldsWhatAnExplanationAdds) {
  DecisionRecord record = some_record();
  HeadExplanation explained;
  explained.reference = "calibration_mean";
  explained.margin_std = 2.5;
  explained.distance = 0.1;
  explained.rank = 1;
  explained.rivals = {{0, 1, 0.2, false}};
  explained.features = FeatureParts{{{.dimension = 3, .value = 0.5}, {.scalar = "margin"}}, 0.1};
  explained.joint = FeatureParts{{{.token = 7, .dimension = 3, .value = 0.5}}, 0.2};
  explained.flip = GateFlip{{7, 2}, true, true, 0.26};
  explained.removal = TokenRemoval{"off", 0.1, true};
  explained.control_share = 0.25;
  explained.roles = R"({"dataset":[],"input":[{"role":"previous","score":0.9}]})";
  explained.effects = R"({"toggle":{"ablation":"zero","frozen":0.3}})";
  explained.attention = R"({"encoding":"top8_u16_u8"})";
  record.heads[0].explained = explained;
  RecordDetails details;
  details.created = "2026-11-22T00:00:00Z";
  details.seeds = {1, 2};
  details.device = "cpu";
  details.model_name = "toy";
  details.units = {{.text = "</script>", .special = true}, {.grid = {{1, 2}}}, {.seconds = 0.5}};
  details.output = OutputValue{"class_margin", 1, 0, 0.75, std::nullopt};
  details.policy_kind = "threshold";
  details.policy_parameters = {{"threshold", 0.4}};
  details.pairs = R"([{"index":"synergy","value":-1.0}])";
  details.faithfulness = R"({"aopc":0.5})";
  details.warnings = {"few examples"};
  details.missing = {{"heads.why.flip.in_model", "images"}};
  record.details = details;
  const DecisionRecord again = DecisionRecord::from_json(record.to_json());
  EXPECT_EQ(again, record);
  EXPECT_EQ(*again.heads[0].explained, explained);
  EXPECT_EQ(*again.details, details);
  EXPECT_TRUE(again.unknown.empty()) << again.unknown;

  details.predicted_loss = NAN;
  record.details = details;
  EXPECT_THROW(record.to_json(), std::invalid_argument);
  explained.effects = "{";
  record = some_record();
  record.heads[0].explained = explained;
  EXPECT_THROW(record.to_json(), std::invalid_argument);
}

TEST(DecisionRecord, TakesMembersIntoTheirPlaces) {
  const DecisionRecord plain = some_record();
  const DecisionRecord wide = plain.with(
      R"({"output": {"metric": "logit", "value_selected": 2.0},
          "heads": [{"layer": 0, "head": 1, "effects": {"direct": 0.5}}],
          "trust": {"stability": {"selection": 1.0}},
          "not_computed": [{"field": "pairs", "reason": "one head"}]})");
  EXPECT_EQ(wide.details->output->metric, "logit");
  EXPECT_EQ(wide.heads[1].explained->effects, R"({"direct":0.5})");
  EXPECT_FALSE(wide.heads[0].explained);
  EXPECT_EQ(wide.details->stability, R"({"selection":1.0})");
  EXPECT_EQ(wide.details->missing, (std::vector<MissingField>{{"pairs", "one head"}}));
  EXPECT_EQ(DecisionRecord::from_json(wide.to_json()), wide);
  EXPECT_TRUE(wide.unknown.empty()) << wide.unknown;
  EXPECT_FALSE(plain.details);
  for (const char* bad : {"[]", R"({"heads": [{"layer": 3, "head": 0}]})", R"({"heads": 1})",
                          R"({"output": {"metric": 3}})"}) {
    EXPECT_THROW(plain.with(bad), std::invalid_argument) << bad;
  }
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
  json["schema_version"] = "3.0";
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
