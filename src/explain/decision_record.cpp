#include "headkit/explain/decision_record.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "core/json_members.h"
#include "explain/record_json.h"
#include "headkit/core/error.h"
#include "headkit/explain/head_explanation.h"
#include "headkit/explain/record_details.h"

namespace headkit {

template <typename T>
bool Details<T>::operator==(const Details& other) const {
  return value_ == other.value_ || (value_ && other.value_ && *value_ == *other.value_);
}
template class Details<HeadExplanation>;
template class Details<RecordDetails>;

namespace {

constexpr auto kOperation = "decision_record";
constexpr std::array<std::string_view, 5> kStates{"on", "off", "pruned", "always_on", "collapsed"};
constexpr auto kNotAsked = "not asked for";

int64_t optional_size(const Json& value, const char* name) {
  return optional_integer(kOperation, value, name).value_or(0);
}
Json known(int64_t size) { return size > 0 ? Json(size) : Json(nullptr); }

Json head_to_json(const HeadDecision& decision) {
  HEADKIT_CHECK(std::find(kStates.begin(), kStates.end(), decision.state) != kStates.end(),
                kOperation, "a state of on, off, pruned, always_on, collapsed", decision.state);
  Json head{{"layer", decision.layer},
            {"head", decision.head},
            {"state", decision.state},
            {"gate", finite_json(decision.gate, "gate")},
            {"reason", nullable(decision.reason)},
            {"logit", nullable_json(decision.logit, "logit")},
            {"threshold", nullable_json(decision.threshold, "threshold")},
            {"margin", nullable_json(decision.margin, "margin")},
            {"why", nullptr}};
  if (decision.base) {
    Json parts = Json::array();
    for (const LogitPart& part : decision.parts) {
      parts.push_back({part.feature.empty() ? Json::object_t::value_type{"unit", part.token}
                                            : Json::object_t::value_type{"feature", part.feature},
                       {"value", finite_json(part.value, "part")}});
    }
    head["why"] = {{"base", finite_json(*decision.base, "base")},
                   {"parts", std::move(parts)},
                   {"rest", nullable_json(decision.rest, "rest")},
                   {"residual", nullable_json(decision.residual, "residual")}};
  }
  if (decision.explained) write_explanation(*decision.explained, head);
  return head;
}

HeadDecision head_from_json(const Json& json) {
  HeadDecision decision;
  decision.layer = integer_member(kOperation, json, "layer");
  decision.head = integer_member(kOperation, json, "head");
  decision.state = string_member(kOperation, json, "state");
  HEADKIT_CHECK(std::find(kStates.begin(), kStates.end(), decision.state) != kStates.end(),
                kOperation, "a state of on, off, pruned, always_on, collapsed", decision.state);
  decision.gate = number_member(kOperation, json, "gate");
  decision.reason = optional_text(kOperation, json, "reason");
  decision.logit = optional_number(kOperation, json, "logit");
  decision.threshold = optional_number(kOperation, json, "threshold");
  decision.margin = optional_number(kOperation, json, "margin");
  if (json.contains("why") && !json.at("why").is_null()) {
    const Json& why = json.at("why");
    decision.base = number_member(kOperation, why, "base");
    decision.rest = optional_number(kOperation, why, "rest");
    decision.residual = optional_number(kOperation, why, "residual");
    const Json& parts = member(kOperation, why, "parts");
    HEADKIT_CHECK(parts.is_array(), kOperation, "an array as \"parts\"", parts.type_name());
    for (const Json& part : parts) {
      const double value = number_member(kOperation, part, "value");
      decision.parts.push_back(
          part.contains("feature")
              ? LogitPart{-1, value, string_member(kOperation, part, "feature")}
              : LogitPart{integer_member(kOperation, part, "unit"), value});
    }
  }
  if (std::optional<HeadExplanation> explained = read_explanation(json)) {
    decision.explained = std::move(*explained);
  }
  return decision;
}

void check_heads(const DecisionRecord& record) {
  const int64_t heads = record.layout.heads;
  HEADKIT_CHECK(record.layout.layers > 0 && heads > 0 &&
                    static_cast<int64_t>(record.heads.size()) == record.layout.total_heads(),
                kOperation, "a decision for every head of the layout", record.heads.size(),
                " decisions for ", record.layout.layers, " layers of ", heads);
  for (size_t i = 0; i < record.heads.size(); ++i) {
    const HeadDecision& decision = record.heads[i];
    HEADKIT_CHECK(
        decision.layer * heads + decision.head == static_cast<int64_t>(i) && decision.head < heads,
        kOperation, "heads by layer, then head", "layer ", decision.layer, " head ", decision.head,
        " at place ", i);
  }
}

void check_blocks(const DecisionRecord& record) {
  if (record.block_count == 0) {
    HEADKIT_CHECK(record.open_blocks.empty(), kOperation, "no open blocks without a block_count",
                  record.open_blocks.size(), " layers of them");
    return;
  }
  HEADKIT_CHECK(static_cast<int64_t>(record.open_blocks.size()) == record.layout.layers, kOperation,
                c10::str("open blocks of ", record.layout.layers, " layers"),
                record.open_blocks.size());
  for (const std::vector<int64_t>& open : record.open_blocks) {
    int64_t previous = -1;
    for (const int64_t block : open) {
      HEADKIT_CHECK(block > previous && block < record.block_count, kOperation,
                    c10::str("ascending blocks below ", record.block_count), block);
      previous = block;
    }
  }
}

void read_blocks(const Json& json, DecisionRecord& record) {
  record.block_count = integer_member(kOperation, json, "count");
  const Json& layers = member(kOperation, json, "open");
  HEADKIT_CHECK(record.block_count > 0 && layers.is_array(), kOperation,
                "open blocks of at least one in a layer", json.dump().substr(0, 80));
  for (const Json& open : layers) {
    HEADKIT_CHECK(
        open.is_array() && std::all_of(open.begin(), open.end(),
                                       [](const Json& block) { return block.is_number_integer(); }),
        kOperation, "lists of blocks", open.dump().substr(0, 80));
    record.open_blocks.push_back(open.get<std::vector<int64_t>>());
  }
  check_blocks(record);
}

bool any_head(const DecisionRecord& record, const std::string HeadExplanation::*text) {
  return std::any_of(record.heads.begin(), record.heads.end(), [&](const HeadDecision& decision) {
    return decision.explained && !((*decision.explained).*text).empty();
  });
}

// What the record lacks; reasons that were given come before ours.
std::vector<MissingField> missing_fields(const DecisionRecord& record) {
  std::vector<MissingField> missing;
  if (record.details) missing = record.details->missing;
  const auto note = [&](bool lacks, const char* field, const char* reason) {
    const bool told = std::any_of(missing.begin(), missing.end(),
                                  [&](const MissingField& each) { return each.field == field; });
    if (lacks && !told) missing.push_back({field, reason});
  };
  note(record.weights_sha256.empty(), "model.weights_sha256", "no fingerprint was given");
  note(!record.flops_run, "budget.flops_run", "the sizes of the model are not known");
  note(!record.risk_bound, "budget.risk_bound", "the policy promises no risk");
  note(record.reference.empty(), "heads.why", "the policy has no linear logits");
  const bool flips = std::any_of(
      record.heads.begin(), record.heads.end(),
      [](const HeadDecision& decision) { return decision.explained && decision.explained->flip; });
  note(!flips, "heads.why.flip", kNotAsked);
  note(!any_head(record, &HeadExplanation::roles), "heads.roles", kNotAsked);
  note(!any_head(record, &HeadExplanation::effects), "heads.effects", kNotAsked);
  note(!any_head(record, &HeadExplanation::attention), "heads.attention", kNotAsked);
  const RecordDetails none, &details = record.details ? *record.details : none;
  note(!details.output, "output", kNotAsked);
  note(details.pairs.empty(), "pairs", kNotAsked);
  note(details.faithfulness.empty(), "trust.faithfulness", kNotAsked);
  note(details.simulatability.empty(), "trust.simulatability", kNotAsked);
  note(details.stability.empty(), "trust.stability", kNotAsked);
  note(details.agreement.empty(), "trust.agreement", kNotAsked);
  return missing;
}

void read_missing(const Json& json, DecisionRecord& record) {
  const auto given = json.find("not_computed");
  if (given == json.end() || given->is_null()) return;
  HEADKIT_CHECK(given->is_array(), kOperation, "an array as \"not_computed\"", given->type_name());
  const std::vector<MissingField> ours = missing_fields(record);
  RecordDetails details = record.details.value_or_new();
  for (const Json& each : *given) {
    MissingField missing{string_member(kOperation, each, "field"),
                         string_member(kOperation, each, "reason")};
    if (std::find(ours.begin(), ours.end(), missing) == ours.end()) {
      details.missing.push_back(std::move(missing));
    }
  }
  if (!details.missing.empty()) record.details = std::move(details);
}

Json record_json(const DecisionRecord& record) {
  check_heads(record);
  check_blocks(record);
  Json all_heads = Json::array();
  for (const HeadDecision& decision : record.heads) all_heads.push_back(head_to_json(decision));
  Json json{
      {"schema_version", kRecordSchema},
      {"library", {{"name", "headkit"}, {"version", nullable(record.library_version)}}},
      {"model",
       {{"weights_sha256", nullable(record.weights_sha256)},
        {"layers", record.layout.layers},
        {"heads", record.layout.heads},
        {"kv_heads", record.layout.key_value_heads()},
        {"head_dim", known(record.layout.head_dim)},
        {"model_dim", known(record.layout.model_dim)},
        {"feed_forward", known(record.layout.feed_forward)}}},
      {"input", {{"id", record.input}, {"length", record.tokens}}},
      {"policy",
       {{"name", record.policy},
        {"calibration_id", nullable(record.calibration)},
        {"threshold", nullable_json(record.threshold, "threshold")},
        {"lambda", nullable_json(record.lambda, "lambda")},
        {"confidence", nullable_json(record.confidence, "confidence")},
        {"signal", nullable(record.signal)},
        {"rung", record.rung ? Json(*record.rung) : Json(nullptr)},
        {"rungs", record.rungs ? Json(*record.rungs) : Json(nullptr)},
        {"decided_at", record.decided_at ? Json(*record.decided_at) : Json(nullptr)},
        {"reference", nullable(record.reference)}}},
      {"budget",
       {{"active", record.active()},
        {"total", record.layout.total_heads()},
        {"heads_run", record.heads_run},
        {"flops_run", nullable_json(record.flops_run, "number of FLOPs")},
        {"flops_dense", nullable_json(record.flops_dense, "number of FLOPs")},
        {"risk_bound", nullable_json(record.risk_bound, "risk")},
        {"unmet", record.budget_unmet ? Json(*record.budget_unmet) : Json(nullptr)}}},
      {"mode", record.mode},
      {"run_time",
       {{"request_id", nullable(record.request_id)},
        {"ood_score", nullable_json(record.ood_score, "score")},
        {"audit_loss", nullable_json(record.audit_loss, "loss")}}},
      {"heads", std::move(all_heads)},
      {"neuron_blocks", record.block_count > 0
                            ? Json{{"count", record.block_count}, {"open", record.open_blocks}}
                            : Json(nullptr)},
  };
  if (record.details) write_details(*record.details, json);
  Json not_computed = Json::array();
  for (const MissingField& missing : missing_fields(record)) {
    not_computed.push_back({{"field", missing.field}, {"reason", missing.reason}});
  }
  json["not_computed"] = std::move(not_computed);
  return json;
}

}  // namespace

int64_t DecisionRecord::active() const {
  return std::count_if(heads.begin(), heads.end(),
                       [](const HeadDecision& decision) { return decision.gate != 0; });
}

at::Tensor DecisionRecord::gates() const {
  check_heads(*this);
  at::Tensor values = at::empty({layout.layers, layout.heads}, at::kFloat);
  float* out = values.mutable_data_ptr<float>();
  for (const HeadDecision& decision : heads) *out++ = static_cast<float>(decision.gate);
  return values;
}

at::Tensor DecisionRecord::block_gates() const {
  if (block_count == 0) return {};
  check_blocks(*this);
  at::Tensor values = at::zeros({layout.layers, block_count}, at::kFloat);
  for (int64_t l = 0; l < layout.layers; ++l) {
    const at::Tensor open = at::tensor(open_blocks[static_cast<size_t>(l)], at::kLong);
    values[l].index_fill_(0, open, 1);
  }
  return values;
}

std::string DecisionRecord::to_json() const {
  Json json = record_json(*this);
  if (!unknown.empty()) restore_members(json, parse_json(kOperation, unknown));
  return json.dump();
}

DecisionRecord DecisionRecord::from_json(const std::string& text) {
  Json json = parse_json(kOperation, text);
  const std::string schema = string_member(kOperation, json, "schema_version");
  const std::string major = schema.substr(0, schema.find('.'));
  HEADKIT_CHECK(major == "1" || major == "2", kOperation,
                std::string("schema version 1 or 2; this headkit writes ") + kRecordSchema, schema);
  if (major == "1") upgrade_record(json);
  DecisionRecord record;
  record.library_version =
      optional_text(kOperation, member(kOperation, json, "library"), "version");
  const Json& model = member(kOperation, json, "model");
  record.weights_sha256 = optional_text(kOperation, model, "weights_sha256");
  record.layout = {integer_member(kOperation, model, "layers"),
                   integer_member(kOperation, model, "heads"),
                   optional_size(model, "head_dim"),
                   optional_size(model, "model_dim"),
                   optional_size(model, "feed_forward"),
                   optional_size(model, "kv_heads")};
  const Json& input = member(kOperation, json, "input");
  record.input = integer_member(kOperation, input, "id");
  record.tokens = integer_member(kOperation, input, "length");
  const Json& policy = member(kOperation, json, "policy");
  record.policy = string_member(kOperation, policy, "name");
  record.calibration = optional_text(kOperation, policy, "calibration_id");
  record.threshold = optional_number(kOperation, policy, "threshold");
  record.lambda = optional_number(kOperation, policy, "lambda");
  record.confidence = optional_number(kOperation, policy, "confidence");
  record.signal = optional_text(kOperation, policy, "signal");
  record.rung = optional_integer(kOperation, policy, "rung");
  record.rungs = optional_integer(kOperation, policy, "rungs");
  record.decided_at = optional_integer(kOperation, policy, "decided_at");
  record.reference = optional_text(kOperation, policy, "reference");
  const Json& budget = member(kOperation, json, "budget");
  record.heads_run = integer_member(kOperation, budget, "heads_run");
  record.flops_run = optional_number(kOperation, budget, "flops_run");
  record.flops_dense = optional_number(kOperation, budget, "flops_dense");
  record.risk_bound = optional_number(kOperation, budget, "risk_bound");
  if (const auto unmet = budget.find("unmet"); unmet != budget.end() && !unmet->is_null()) {
    HEADKIT_CHECK(unmet->is_boolean(), kOperation, "true, false or null as \"unmet\"",
                  unmet->type_name());
    record.budget_unmet = unmet->get<bool>();
  }
  record.mode = string_member(kOperation, json, "mode");
  if (const auto run_time = json.find("run_time"); run_time != json.end()) {
    record.request_id = optional_text(kOperation, *run_time, "request_id");
    record.ood_score = optional_number(kOperation, *run_time, "ood_score");
    record.audit_loss = optional_number(kOperation, *run_time, "audit_loss");
  }
  const Json& heads = member(kOperation, json, "heads");
  HEADKIT_CHECK(heads.is_array(), kOperation, "an array as \"heads\"", heads.type_name());
  for (const Json& head : heads) record.heads.push_back(head_from_json(head));
  check_heads(record);
  if (json.contains("neuron_blocks") && !json.at("neuron_blocks").is_null()) {
    read_blocks(json.at("neuron_blocks"), record);
  }
  if (std::optional<RecordDetails> details = read_details(json)) {
    record.details = std::move(*details);
  }
  read_missing(json, record);
  const Json unknown = unknown_members(json, record_json(record));
  if (!unknown.is_null()) record.unknown = unknown.dump();
  return record;
}

DecisionRecord DecisionRecord::with(const std::string& patch) const {
  Json given = parse_json(kOperation, patch);
  HEADKIT_CHECK(given.is_object(), kOperation, "an object", given.type_name());
  Json json = parse_json(kOperation, to_json());
  json["not_computed"] = Json::array();
  if (details) {
    for (const MissingField& each : details->missing) {
      json["not_computed"].push_back({{"field", each.field}, {"reason", each.reason}});
    }
  }
  if (const auto heads = given.find("heads"); heads != given.end()) {
    HEADKIT_CHECK(heads->is_array(), kOperation, "an array as \"heads\"", heads->type_name());
    for (const Json& head : *heads) {
      const int64_t layer = integer_member(kOperation, head, "layer");
      const int64_t place = integer_member(kOperation, head, "head");
      HEADKIT_CHECK(layer >= 0 && layer < layout.layers && place >= 0 && place < layout.heads,
                    kOperation, c10::str("heads of ", layout.layers, " layers of ", layout.heads),
                    "layer ", layer, " head ", place);
      json["heads"][static_cast<size_t>(layer * layout.heads + place)].merge_patch(head);
    }
    given.erase(heads);
  }
  json.merge_patch(given);
  return from_json(json.dump());
}

std::string write_decision_records(const std::vector<DecisionRecord>& records) {
  std::string lines;
  for (const DecisionRecord& record : records) lines += record.to_json() + "\n";
  return lines;
}

std::vector<DecisionRecord> read_decision_records(const std::string& lines) {
  std::vector<DecisionRecord> records;
  std::istringstream text(lines);
  std::string line;
  for (int64_t number = 1; std::getline(text, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      records.push_back(DecisionRecord::from_json(line));
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("line " + std::to_string(number) + ": " + error.what());
    }
  }
  return records;
}

}  // namespace headkit
