#include "headkit/gates/linear_gate.h"

#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "gates/affine_rows.h"
#include "gates/early_record.h"
#include "gates/head_decision.h"
#include "gates/head_rule.h"
#include "gates/logit_parts.h"
#include "gates/policy_json.h"
#include "gates/tensor_text.h"
#include "headkit/core/error.h"
#include "headkit/gates/gate_features.h"

namespace headkit {
namespace {

constexpr auto kOperation = "linear_gate";
}  // namespace

LinearGate::LinearGate(LinearGateSettings settings) : settings_(std::move(settings)) {
  const auto is_double = [](const at::Tensor& t, int64_t rank) {
    return t.defined() && t.dim() == rank && t.scalar_type() == at::kDouble && t.is_cpu() &&
           t.isfinite().all().item<bool>();
  };
  const at::Tensor& weight = settings_.weight;
  HEADKIT_CHECK(is_double(weight, 3), kOperation,
                "a finite float64 weight of shape [layers, heads, D] on the CPU",
                weight.defined() ? c10::str(weight.scalar_type(), " ", weight.sizes()) : "none");
  const int64_t layers = weight.size(0), heads = weight.size(1), width = weight.size(2);
  const auto scalars = static_cast<int64_t>(settings_.features.size());
  HEADKIT_CHECK(width > scalars, kOperation,
                c10::str("a weight of more than ", scalars, " features"), width);
  check_scalar_features(kOperation, settings_.features, probe());
  HEADKIT_CHECK(
      probe() == nullptr || (probe()->layer() == 0 && probe()->model_dim() == width - scalars),
      kOperation, c10::str("a probe before layer 0 of width ", width - scalars),
      "one before layer ", probe()->layer(), " of width ", probe()->model_dim());
  HEADKIT_CHECK(is_double(settings_.reference, 1) && settings_.reference.size(0) == width,
                kOperation, c10::str("a finite float64 reference of shape [", width, "]"),
                settings_.reference.defined() ? c10::str(settings_.reference.sizes()) : "none");
  const at::Tensor& logits = settings_.static_logits;
  HEADKIT_CHECK(is_double(logits, 2) && logits.size(0) == layers && logits.size(1) == heads,
                kOperation,
                c10::str("finite float64 static logits of shape [", layers, ", ", heads, "]"),
                logits.defined() ? c10::str(logits.sizes()) : "none");
  if (!settings_.fixed.defined()) settings_.fixed = at::zeros({layers, heads}, at::kChar);
  check_fixed_heads(kOperation, settings_.fixed, logits.sizes());
  HEADKIT_CHECK(std::isfinite(settings_.threshold), kOperation, "a finite threshold",
                settings_.threshold);
  HEADKIT_CHECK(settings_.min_heads >= 0 && settings_.min_heads <= layers * heads, kOperation,
                c10::str("min_heads from 0 to ", layers * heads), settings_.min_heads);
  GateSet{{}, settings_.dropped_output}.check(kOperation, -1, layers, heads);
  settings_.fixed = settings_.fixed.contiguous();
  settings_.static_logits = settings_.static_logits.contiguous();
  settings_.reference = settings_.reference.contiguous();
  weight_by_feature_ = weight.reshape({layers * heads, width}).t().contiguous();
}

const LinearProbe* LinearGate::probe() const {
  return settings_.probe ? &*settings_.probe : nullptr;
}

at::Tensor LinearGate::features(const at::Tensor& hidden, const at::Tensor& attention_mask) const {
  const int64_t width = settings_.weight.size(2) - static_cast<int64_t>(settings_.features.size());
  HEADKIT_CHECK(hidden.defined() && hidden.dim() == 3 && hidden.size(2) == width, kOperation,
                c10::str("hidden states of shape [batch, tokens, ", width, "]"),
                hidden.defined() ? c10::str("shape ", hidden.sizes()) : "none");
  return gate_features(kOperation, settings_.features, probe(), hidden, attention_mask,
                       settings_.reference);
}

at::Tensor LinearGate::logits(const at::Tensor& hidden, const at::Tensor& attention_mask) const {
  return logits_of(features(hidden, attention_mask));
}

at::Tensor LinearGate::logits_of(const at::Tensor& features) const {
  return affine_rows(features, settings_.reference, weight_by_feature_,
                     settings_.static_logits.flatten())
      .reshape({features.size(0), settings_.weight.size(0), settings_.weight.size(1)});
}

at::Tensor LinearGate::open_heads(const at::Tensor& logits) const {
  check_logits(kOperation, logits, settings_.fixed);
  return headkit::open_heads(logits, settings_.fixed, settings_.threshold, settings_.min_heads);
}

LinearGate LinearGate::with_mean_heads(const at::Tensor& logits, double mean_heads) const {
  check_logits(kOperation, logits, settings_.fixed);
  HEADKIT_CHECK(logits.size(0) > 0, kOperation, "logits of at least one sample", "none");
  LinearGateSettings settings = settings_;
  settings.threshold =
      threshold_for_mean(kOperation, logits, settings_.fixed, settings_.min_heads, 1, mean_heads);
  return LinearGate(std::move(settings));
}

LinearGate LinearGate::with_dropped_output(at::Tensor dropped_output) const {
  LinearGateSettings settings = settings_;
  settings.dropped_output = std::move(dropped_output);
  return LinearGate(std::move(settings));
}

GateSet LinearGate::decide(const GateInput& input, State& state) const {
  HEADKIT_CHECK(input.layer == 0, kOperation, "to be asked before layer 0", "layer ", input.layer);
  const at::Tensor features = this->features(input.hidden, input.attention_mask);
  const at::Tensor logits = logits_of(features);
  const at::Tensor fixed = fixed_heads(kOperation, settings_.fixed, state.present);
  const int64_t batch = logits.size(0), layers = logits.size(1), heads = logits.size(2);
  const HeadRule rule{fixed.const_data_ptr<int8_t>(), layers * heads, settings_.threshold,
                      settings_.min_heads};
  const double* const z = logits.const_data_ptr<double>();
  at::Tensor open = at::zeros({batch, layers, heads}, at::kFloat);
  float* const gate = open.mutable_data_ptr<float>();
  std::vector<HeadReason> reason(rule.heads);

  const std::vector<int64_t> tokens =
      state.record ? valid_tokens(input.hidden, input.attention_mask) : std::vector<int64_t>();
  for (int64_t b = 0; b < batch; ++b) {
    const double* const row = z + b * rule.heads;
    decide_heads(row, rule, reason.data());
    for (int64_t h = 0; h < rule.heads; ++h) {
      gate[b * rule.heads + h] = reason[h] != HeadReason::kClosed;
    }
    if (!state.record) continue;

    DecisionRecord record = start_record(*this, state, layers, heads, tokens[b]);
    record.calibration = settings_.calibration;
    record.mode = "dynamic";
    record.reference = "calibration_mean";
    record.threshold = settings_.threshold;
    const LogitParts parts(input.hidden[b],
                           input.attention_mask.defined() ? input.attention_mask[b] : at::Tensor(),
                           settings_.weight.reshape({rule.heads, -1}), settings_.reference,
                           features[b].slice(0, input.hidden.size(2)), settings_.features);
    for (int64_t h = 0; h < rule.heads; ++h) {
      HeadDecision decision =
          head_decision({h / heads, h % heads}, gate[b * rule.heads + h], reason[h], rule.fixed[h],
                        state.present, row[h], settings_.threshold);
      parts.explain(h, row[h], settings_.static_logits.const_data_ptr<double>()[h], decision);
      record.heads.push_back(std::move(decision));
    }
    finish_record(record, state);
  }
  GateSet gates;
  gates.heads = open.to(gate_options(input.hidden));
  gates.dropped_output = fitting_dropped_output(settings_.dropped_output, input.hidden);
  return gates;
}

std::shared_ptr<GatePolicy> LinearGate::at(double lambda) const {
  check_lambda(kOperation, lambda);
  LinearGateSettings settings = settings_;
  RuleAt rule = rule_at(lambda, settings.static_logits, settings.fixed, settings.threshold);
  settings.fixed = std::move(rule.fixed);
  settings.threshold = rule.threshold;
  return std::make_shared<LinearGate>(std::move(settings));
}

std::string LinearGate::to_json() const {
  Json json = policy_json("linear_gate");
  json["weight"] = tensor_to_text(kOperation, settings_.weight);
  json["reference"] = tensor_to_text(kOperation, settings_.reference);
  json["static_logits"] = tensor_to_text(kOperation, settings_.static_logits);
  json["fixed"] = tensor_to_text(kOperation, settings_.fixed);
  json["threshold"] = settings_.threshold;
  json["min_heads"] = settings_.min_heads;
  json["dropped_output"] = tensor_to_text(kOperation, settings_.dropped_output);
  json["calibration"] = settings_.calibration;
  if (!settings_.features.empty()) {
    json["features"] = settings_.features;
    json["probes"] = Json::array();
    if (settings_.probe) {
      json["probes"].push_back(parse_json(kOperation, settings_.probe->to_json()));
    }
  }
  return json.dump();
}

std::shared_ptr<LinearGate> LinearGate::from_json(const std::string& text) {
  const Json json = read_policy_json("linear_gate", text);
  const auto tensor = [&](const char* name) {
    return tensor_from_text(kOperation, member(kOperation, json, name));
  };
  LinearGateSettings settings;
  settings.weight = tensor("weight");
  settings.reference = tensor("reference");
  settings.static_logits = tensor("static_logits");
  settings.fixed = tensor("fixed");
  settings.threshold = number_member(kOperation, json, "threshold");
  settings.min_heads = integer_member(kOperation, json, "min_heads");
  settings.dropped_output = tensor("dropped_output");
  settings.calibration = string_member(kOperation, json, "calibration");
  settings.features = read_feature_names(kOperation, json);
  for (LinearProbe& probe : read_probes(kOperation, json)) settings.probe = std::move(probe);
  return std::make_shared<LinearGate>(std::move(settings));
}

}  // namespace headkit
