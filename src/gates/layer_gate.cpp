#include "headkit/gates/layer_gate.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "distributed/measured_walk.h"
#include "gates/affine_rows.h"
#include "gates/early_record.h"
#include "gates/head_decision.h"
#include "gates/head_rule.h"
#include "gates/logit_parts.h"
#include "gates/policy_json.h"
#include "gates/tensor_text.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "layer_gate";

// The records of a batch between its first and its last decision.
struct LayerState final : GatePolicy::State {
  std::vector<DecisionRecord> open;
};

bool is_finite_double(const at::Tensor& t, int64_t rank) {
  return t.defined() && t.dim() == rank && t.scalar_type() == at::kDouble && t.is_cpu() &&
         t.isfinite().all().item<bool>();
}

std::string shape_of(const at::Tensor& t) { return t.defined() ? c10::str(t.sizes()) : "none"; }

}  // namespace

LayerGate::LayerGate(LayerGateSettings settings) : settings_(std::move(settings)) {
  LayerGateSettings& s = settings_;
  HEADKIT_CHECK(is_finite_double(s.weight, 3), kOperation,
                "a finite float64 weight of shape [layers, heads, D + scalars] on the CPU",
                shape_of(s.weight));
  const int64_t layers = s.weight.size(0), heads = s.weight.size(1), width = s.weight.size(2);
  const auto scalars = static_cast<int64_t>(s.features.size());
  HEADKIT_CHECK(width > scalars, kOperation,
                c10::str("a weight of more than ", scalars, " features"), width);
  HEADKIT_CHECK(
      is_finite_double(s.reference, 2) && s.reference.sizes() == at::IntArrayRef({layers, width}),
      kOperation, c10::str("a finite float64 reference of shape [", layers, ", ", width, "]"),
      shape_of(s.reference));
  HEADKIT_CHECK(is_finite_double(s.static_logits, 2) &&
                    s.static_logits.sizes() == at::IntArrayRef({layers, heads}),
                kOperation,
                c10::str("finite float64 static logits of shape [", layers, ", ", heads, "]"),
                shape_of(s.static_logits));
  HEADKIT_CHECK(s.probes.empty() || static_cast<int64_t>(s.probes.size()) == layers, kOperation,
                c10::str("no probe, or one for each of ", layers, " layers"), s.probes.size());
  for (int64_t l = 0; l < layers; ++l) {
    check_scalar_features(kOperation, s.features, probe(l));
    HEADKIT_CHECK(
        probe(l) == nullptr || (probe(l)->layer() == l && probe(l)->model_dim() == width - scalars),
        kOperation, c10::str("a probe before layer ", l, " of width ", width - scalars),
        "one before layer ", probe(l)->layer(), " of width ", probe(l)->model_dim());
  }
  if (!s.fixed.defined()) s.fixed = at::zeros({layers, heads}, at::kChar);
  check_fixed_heads(kOperation, s.fixed, s.static_logits.sizes());
  HEADKIT_CHECK(std::isfinite(s.threshold), kOperation, "a finite threshold", s.threshold);
  HEADKIT_CHECK(s.min_heads >= 0 && s.min_heads <= heads, kOperation,
                c10::str("min_heads of a layer from 0 to ", heads), s.min_heads);
  GateSet{{}, s.dropped_output}.check(kOperation, -1, layers, heads);
  s.reference = s.reference.contiguous();
  s.static_logits = s.static_logits.contiguous();
  s.fixed = s.fixed.contiguous();
  for (int64_t l = 0; l < layers; ++l) {
    weight_by_feature_.push_back(s.weight[l].t().contiguous());
    if (l == 0 || s.fixed[l].eq(0).any().item<bool>()) decision_layers_.push_back(l);
  }
}

std::unique_ptr<GatePolicy::State> LayerGate::start() const {
  return std::make_unique<LayerState>();
}

const LinearProbe* LayerGate::probe(int64_t layer) const {
  return settings_.probes.empty() ? nullptr : &settings_.probes[static_cast<size_t>(layer)];
}

at::Tensor LayerGate::logits(int64_t layer, const at::Tensor& hidden,
                             const at::Tensor& attention_mask) const {
  const LayerGateSettings& s = settings_;
  HEADKIT_CHECK(layer >= 0 && layer < s.weight.size(0), kOperation,
                c10::str("a layer from 0 to ", s.weight.size(0) - 1), layer);
  const at::Tensor features = gate_features(kOperation, s.features, probe(layer), hidden,
                                            attention_mask, s.reference[layer]);
  return affine_rows(features, s.reference[layer], weight_by_feature_[static_cast<size_t>(layer)],
                     s.static_logits[layer]);
}

at::Tensor LayerGate::open_heads(const at::Tensor& logits) const {
  const at::Tensor& fixed = settings_.fixed;
  check_logits(kOperation, logits, fixed);
  std::vector<at::Tensor> layers;
  for (int64_t l = 0; l < fixed.size(0); ++l) {
    layers.push_back(headkit::open_heads(logits.select(1, l), fixed[l], settings_.threshold,
                                         settings_.min_heads));
  }
  return at::stack(layers, 1);
}

LayerGate LayerGate::with_dropped_output(at::Tensor dropped_output) const {
  LayerGateSettings settings = settings_;
  settings.dropped_output = std::move(dropped_output);
  return LayerGate(std::move(settings));
}

LayerGate LayerGate::with_threshold(double threshold) const {
  LayerGateSettings settings = settings_;
  settings.threshold = threshold;
  return LayerGate(std::move(settings));
}

std::shared_ptr<GatePolicy> LayerGate::at(double lambda) const {
  check_lambda(kOperation, lambda);
  LayerGateSettings settings = settings_;
  const RuleAt rule = rule_at(lambda, settings.static_logits, settings.fixed, settings.threshold);
  settings.fixed = rule.fixed;
  settings.threshold = rule.threshold;
  return std::make_shared<LayerGate>(std::move(settings));
}

GateSet LayerGate::decide(const GateInput& input, State& state) const {
  const LayerGateSettings& s = settings_;
  const auto place = std::find(decision_layers_.begin(), decision_layers_.end(), input.layer);
  HEADKIT_CHECK(place != decision_layers_.end(), kOperation,
                c10::str("to be asked before a layer of ", decision_layers_), "layer ",
                input.layer);
  const bool first = place == decision_layers_.begin(), last = place + 1 == decision_layers_.end();
  const int64_t layers = s.weight.size(0), heads = s.weight.size(1), batch = input.hidden.size(0);
  const int64_t end = last ? layers : *(place + 1);
  auto* const records = dynamic_cast<LayerState*>(&state);
  HEADKIT_CHECK(!state.record || records != nullptr, kOperation,
                "a state that start() of this policy gave, for records", "another");
  HEADKIT_CHECK(!state.record || first || static_cast<int64_t>(records->open.size()) == batch,
                kOperation, "the batch that was decided before the first layer",
                state.record ? records->open.size() : 0, " samples there and ", batch, " here");
  const at::Tensor fixed = fixed_heads(kOperation, s.fixed, state.present);
  const at::Tensor features =
      gate_features(kOperation, s.features, probe(input.layer), input.hidden, input.attention_mask,
                    s.reference[input.layer]);
  const at::Tensor z = affine_rows(features, s.reference[input.layer],
                                   weight_by_feature_[static_cast<size_t>(input.layer)],
                                   s.static_logits[input.layer]);
  if (state.record && first) {
    const std::vector<int64_t> tokens = valid_tokens(input.hidden, input.attention_mask);
    records->open.clear();
    for (int64_t b = 0; b < batch; ++b) {
      DecisionRecord record = start_record(*this, state, layers, heads, tokens[b]);
      record.input = state.next_input + b;
      record.calibration = s.calibration;
      record.mode = "dynamic";
      record.reference = "calibration_mean";
      record.threshold = s.threshold;
      records->open.push_back(std::move(record));
    }
  }
  at::Tensor open = at::ones({batch, layers, heads}, at::kFloat);
  float* const gate = open.mutable_data_ptr<float>();
  std::vector<HeadReason> reason(heads);
  for (int64_t b = 0; b < batch; ++b) {
    std::optional<LogitParts> parts;
    if (state.record) {
      parts.emplace(
          input.hidden[b], input.attention_mask.defined() ? input.attention_mask[b] : at::Tensor(),
          s.weight[input.layer], s.reference[input.layer],
          features[b].slice(0, s.weight.size(2) - static_cast<int64_t>(s.features.size())),
          s.features);
    }
    for (int64_t l = input.layer; l < end; ++l) {
      const bool decided = l == input.layer;
      const double* const logit = decided ? z.const_data_ptr<double>() + b * heads
                                          : s.static_logits.const_data_ptr<double>() + l * heads;
      const HeadRule rule{fixed.const_data_ptr<int8_t>() + l * heads, heads, s.threshold,
                          s.min_heads};
      decide_heads(logit, rule, reason.data());
      for (int64_t h = 0; h < heads; ++h) {
        const float value = reason[h] != HeadReason::kClosed ? 1 : 0;
        gate[(b * layers + l) * heads + h] = value;
        if (!state.record) continue;
        HeadDecision decision = head_decision({l, h}, value, reason[h], rule.fixed[h],
                                              state.present, logit[h], s.threshold);
        const double base = s.static_logits.const_data_ptr<double>()[l * heads + h];
        if (decided) parts->explain(h, logit[h], base, decision);
        records->open[b].heads.push_back(std::move(decision));
      }
    }
  }
  if (state.record && last) {
    for (DecisionRecord& record : records->open) finish_record(record, state);
    records->open.clear();
  }
  GateSet gates;
  gates.heads = open.to(gate_options(input.hidden));
  gates.dropped_output = fitting_dropped_output(s.dropped_output, input.hidden);
  return gates;
}

std::string LayerGate::to_json() const {
  const LayerGateSettings& s = settings_;
  Json json = policy_json(kOperation);
  json["weight"] = tensor_to_text(kOperation, s.weight);
  json["reference"] = tensor_to_text(kOperation, s.reference);
  json["static_logits"] = tensor_to_text(kOperation, s.static_logits);
  json["features"] = s.features;
  json["probes"] = Json::array();
  for (const LinearProbe& each : s.probes) {
    json["probes"].push_back(parse_json(kOperation, each.to_json()));
  }
  json["fixed"] = tensor_to_text(kOperation, s.fixed);
  json["threshold"] = s.threshold;
  json["min_heads"] = s.min_heads;
  json["dropped_output"] = tensor_to_text(kOperation, s.dropped_output);
  json["calibration"] = s.calibration;
  return json.dump();
}

std::shared_ptr<LayerGate> LayerGate::from_json(const std::string& text) {
  const Json json = read_policy_json(kOperation, text);
  const auto tensor = [&](const char* name) {
    return tensor_from_text(kOperation, member(kOperation, json, name));
  };
  LayerGateSettings settings;
  settings.weight = tensor("weight");
  settings.reference = tensor("reference");
  settings.static_logits = tensor("static_logits");
  settings.features = read_feature_names(kOperation, json);
  settings.probes = read_probes(kOperation, json);
  settings.fixed = tensor("fixed");
  settings.threshold = number_member(kOperation, json, "threshold");
  settings.min_heads = integer_member(kOperation, json, "min_heads");
  settings.dropped_output = tensor("dropped_output");
  settings.calibration = string_member(kOperation, json, "calibration");
  return std::make_shared<LayerGate>(std::move(settings));
}

at::Tensor layer_gate_logits(GatedModel& model, const DataSource& data, const LayerGate& gate) {
  const int64_t layers = model.layout().layers;
  HEADKIT_CHECK(layers == gate.settings().weight.size(0), kOperation,
                c10::str("a model of ", gate.settings().weight.size(0), " layers"), layers);
  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  std::vector<at::Tensor> all;
  const auto measure = [&](const Batch& batch, int64_t) -> Measured {
    ModelState state = model.embed(batch);
    const int64_t samples = state.hidden.size(0);
    const std::unique_ptr<GatePolicy::State> fresh = gate.start();
    fresh->present = model.heads();
    at::Tensor logits =
        gate.settings().static_logits.unsqueeze(0).expand({samples, -1, -1}).clone();
    const std::vector<int64_t> stops = gate.decision_layers();
    for (size_t i = 0; i < stops.size(); ++i) {
      const GateInput input{stops[i], state.hidden, state.attention_mask};
      logits.select(1, stops[i]).copy_(gate.logits(stops[i], state.hidden, state.attention_mask));
      // What the last decision says is not needed.
      if (i + 1 < stops.size()) {
        state = model.run(state, stops[i], stops[i + 1], gate.decide(input, *fresh));
      }
    }
    return {logits};
  };
  for_each_measured(kOperation, data, {}, measure,
                    [&](const Batch&, const Measured& measured) { all.push_back(measured[0]); });
  HEADKIT_CHECK(!all.empty(), kOperation, "data with at least one example", "none");
  return at::cat(all);
}

}  // namespace headkit
