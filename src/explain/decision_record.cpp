#include "headkit/explain/decision_record.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "decision_record";
constexpr std::array<std::string_view, 5> kStates{"on", "off", "pruned", "always_on", "collapsed"};
constexpr std::array<const char*, 11> kMembers{
    "schema_version", "library", "model",    "input",         "policy",      "budget",
    "mode",           "heads",   "run_time", "neuron_blocks", "not_computed"};

Json finite(double value, const char* what) {
  HEADKIT_CHECK(std::isfinite(value), kOperation, std::string("a finite ") + what, value);
  return value;
}
Json nullable(const std::optional<double>& value, const char* what) {
  return value ? finite(*value, what) : Json(nullptr);
}
Json nullable(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }
Json known(int64_t size) { return size > 0 ? Json(size) : Json(nullptr); }

std::optional<double> optional_number(const Json& value, const char* name) {
  if (!value.contains(name) || value.at(name).is_null()) return std::nullopt;
  return number_member(kOperation, value, name);
}
std::string optional_text(const Json& value, const char* name) {
  if (!value.contains(name) || value.at(name).is_null()) return {};
  return string_member(kOperation, value, name);
}
int64_t optional_size(const Json& value, const char* name) {
  if (!value.contains(name) || value.at(name).is_null()) return 0;
  return integer_member(kOperation, value, name);
}

std::optional<int64_t> optional_integer(const Json& value, const char* name) {
  if (!value.contains(name) || value.at(name).is_null()) return std::nullopt;
  return integer_member(kOperation, value, name);
}

Json head_to_json(const HeadDecision& decision) {
  HEADKIT_CHECK(std::find(kStates.begin(), kStates.end(), decision.state) != kStates.end(),
                kOperation, "a state of on, off, pruned, always_on, collapsed", decision.state);
  Json head{{"layer", decision.layer},
            {"head", decision.head},
            {"state", decision.state},
            {"gate", finite(decision.gate, "gate")},
            {"reason", nullable(decision.reason)},
            {"logit", nullable(decision.logit, "logit")},
            {"threshold", nullable(decision.threshold, "threshold")},
            {"margin", nullable(decision.margin, "margin")},
            {"why", nullptr}};
  if (decision.base) {
    Json parts = Json::array();
    for (const LogitPart& part : decision.parts) {
      parts.push_back({{"unit", part.feature.empty() ? Json(part.token) : Json(part.feature)},
                       {"value", finite(part.value, "part")}});
    }
    head["why"] = {{"base", finite(*decision.base, "base")},
                   {"parts", std::move(parts)},
                   {"rest", nullable(decision.rest, "rest")},
                   {"residual", nullable(decision.residual, "residual")}};
  }
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
  decision.reason = optional_text(json, "reason");
  decision.logit = optional_number(json, "logit");
  decision.threshold = optional_number(json, "threshold");
  decision.margin = optional_number(json, "margin");
  if (json.contains("why") && !json.at("why").is_null()) {
    const Json& why = json.at("why");
    decision.base = number_member(kOperation, why, "base");
    decision.rest = optional_number(why, "rest");
    decision.residual = optional_number(why, "residual");
    const Json& parts = member(kOperation, why, "parts");
    HEADKIT_CHECK(parts.is_array(), kOperation, "an array as \"parts\"", parts.type_name());
    for (const Json& part : parts) {
      const double value = number_member(kOperation, part, "value");
      const bool scalar = member(kOperation, part, "unit").is_string();
      decision.parts.push_back(scalar
                                   ? LogitPart{-1, value, string_member(kOperation, part, "unit")}
                                   : LogitPart{integer_member(kOperation, part, "unit"), value});
    }
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
  check_heads(*this);
  check_blocks(*this);
  Json all_heads = Json::array();
  for (const HeadDecision& decision : heads) all_heads.push_back(head_to_json(decision));

  Json not_computed = Json::array();
  const auto note = [&](bool missing, const char* name) {
    if (missing) not_computed.push_back(name);
  };
  note(weights_sha256.empty(), "model.weights_sha256");
  note(!flops_run, "budget.flops_run");
  note(!risk_bound, "budget.risk_bound");
  note(reference.empty(), "heads.why");

  Json json = unknown.empty() ? Json::object() : parse_json(kOperation, unknown);
  json.update(Json{
      {"schema_version", kRecordSchema},
      {"library", {{"name", "headkit"}, {"version", nullable(library_version)}}},
      {"model",
       {{"weights_sha256", nullable(weights_sha256)},
        {"layers", layout.layers},
        {"heads", layout.heads},
        {"head_dim", known(layout.head_dim)},
        {"model_dim", known(layout.model_dim)},
        {"feed_forward", known(layout.feed_forward)}}},
      {"input", {{"id", input}, {"length", tokens}}},
      {"policy",
       {{"name", policy},
        {"calibration_id", nullable(calibration)},
        {"threshold", nullable(threshold, "threshold")},
        {"lambda", nullable(lambda, "lambda")},
        {"confidence", nullable(confidence, "confidence")},
        {"signal", nullable(signal)},
        {"rung", rung ? Json(*rung) : Json(nullptr)},
        {"rungs", rungs ? Json(*rungs) : Json(nullptr)},
        {"decided_at", decided_at ? Json(*decided_at) : Json(nullptr)},
        {"reference", nullable(reference)}}},
      {"budget",
       {{"active", active()},
        {"total", layout.total_heads()},
        {"heads_run", heads_run},
        {"flops_run", nullable(flops_run, "number of FLOPs")},
        {"flops_dense", nullable(flops_dense, "number of FLOPs")},
        {"risk_bound", nullable(risk_bound, "risk")},
        {"unmet", budget_unmet ? Json(*budget_unmet) : Json(nullptr)}}},
      {"mode", mode},
      {"run_time",
       {{"request_id", nullable(request_id)},
        {"ood_score", nullable(ood_score, "score")},
        {"audit_loss", nullable(audit_loss, "loss")}}},
      {"heads", std::move(all_heads)},
      {"neuron_blocks",
       block_count > 0 ? Json{{"count", block_count}, {"open", open_blocks}} : Json(nullptr)},
      {"not_computed", std::move(not_computed)},
  });
  return json.dump();
}

DecisionRecord DecisionRecord::from_json(const std::string& text) {
  Json json = parse_json(kOperation, text);
  const std::string schema = string_member(kOperation, json, "schema_version");
  HEADKIT_CHECK(schema.substr(0, schema.find('.')) == "1", kOperation,
                std::string("schema version 1, as this headkit writes (") + kRecordSchema + ")",
                schema);
  DecisionRecord record;
  record.library_version = optional_text(member(kOperation, json, "library"), "version");
  const Json& model = member(kOperation, json, "model");
  record.weights_sha256 = optional_text(model, "weights_sha256");
  record.layout = {integer_member(kOperation, model, "layers"),
                   integer_member(kOperation, model, "heads"), optional_size(model, "head_dim"),
                   optional_size(model, "model_dim"), optional_size(model, "feed_forward")};
  const Json& input = member(kOperation, json, "input");
  record.input = integer_member(kOperation, input, "id");
  record.tokens = integer_member(kOperation, input, "length");
  const Json& policy = member(kOperation, json, "policy");
  record.policy = string_member(kOperation, policy, "name");
  record.calibration = optional_text(policy, "calibration_id");
  record.threshold = optional_number(policy, "threshold");
  record.lambda = optional_number(policy, "lambda");
  record.confidence = optional_number(policy, "confidence");
  record.signal = optional_text(policy, "signal");
  record.rung = optional_integer(policy, "rung");
  record.rungs = optional_integer(policy, "rungs");
  record.decided_at = optional_integer(policy, "decided_at");
  record.reference = optional_text(policy, "reference");
  const Json& budget = member(kOperation, json, "budget");
  record.heads_run = integer_member(kOperation, budget, "heads_run");
  record.flops_run = optional_number(budget, "flops_run");
  record.flops_dense = optional_number(budget, "flops_dense");
  record.risk_bound = optional_number(budget, "risk_bound");
  if (const auto unmet = budget.find("unmet"); unmet != budget.end() && !unmet->is_null()) {
    HEADKIT_CHECK(unmet->is_boolean(), kOperation, "true, false or null as \"unmet\"",
                  unmet->type_name());
    record.budget_unmet = unmet->get<bool>();
  }
  record.mode = string_member(kOperation, json, "mode");
  if (const auto run_time = json.find("run_time"); run_time != json.end()) {
    record.request_id = optional_text(*run_time, "request_id");
    record.ood_score = optional_number(*run_time, "ood_score");
    record.audit_loss = optional_number(*run_time, "audit_loss");
  }
  const Json& heads = member(kOperation, json, "heads");
  HEADKIT_CHECK(heads.is_array(), kOperation, "an array as \"heads\"", heads.type_name());
  for (const Json& head : heads) record.heads.push_back(head_from_json(head));
  check_heads(record);
  if (json.contains("neuron_blocks") && !json.at("neuron_blocks").is_null()) {
    read_blocks(json.at("neuron_blocks"), record);
  }
  for (const char* name : kMembers) json.erase(name);
  if (!json.empty()) record.unknown = json.dump();
  return record;
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
