#include "headkit/gates/linear_gate.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "gates/affine_rows.h"
#include "gates/early_record.h"
#include "gates/policy_json.h"
#include "gates/tensor_text.h"
#include "headkit/core/error.h"
#include "headkit/gates/pooled_state.h"

namespace headkit {
namespace {

constexpr auto kOperation = "linear_gate";
constexpr int64_t kListedParts = 8;

enum class Reason : char { kScore, kFloor, kFixed, kClosed };

struct Rule {
  const int8_t* fixed;  // [heads]
  int64_t heads;
  double threshold;
  int64_t min_heads;
};

// Decides one sample; returns the number of open heads.
int64_t decide_row(const double* logit, const Rule& rule, Reason* reason) {
  int64_t open = 0;
  for (int64_t h = 0; h < rule.heads; ++h) {
    if (rule.fixed[h] != 0) {
      reason[h] = rule.fixed[h] > 0 ? Reason::kFixed : Reason::kClosed;
    } else {
      reason[h] = logit[h] >= rule.threshold ? Reason::kScore : Reason::kClosed;
    }
    open += reason[h] != Reason::kClosed;
  }
  while (open < rule.min_heads) {
    int64_t best = -1;
    for (int64_t h = 0; h < rule.heads; ++h) {
      if (reason[h] == Reason::kClosed && rule.fixed[h] == 0 &&
          (best < 0 || logit[h] > logit[best])) {
        best = h;
      }
    }
    if (best < 0) break;  // everything that may run does
    reason[best] = Reason::kFloor;
    ++open;
  }
  return open;
}

at::Tensor fixed_heads(const LinearGateSettings& settings, const HeadMask& present) {
  if (present.layers() == 0) return settings.fixed;
  HEADKIT_CHECK(present.keep().sizes() == settings.fixed.sizes(), kOperation,
                c10::str("a model of layers and heads ", settings.fixed.sizes()), "one of ",
                present.keep().sizes());
  return settings.fixed.masked_fill(present.keep().logical_not(), -1);
}

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
  HEADKIT_CHECK(is_double(settings_.reference, 1) && settings_.reference.size(0) == width,
                kOperation, c10::str("a finite float64 reference of shape [", width, "]"),
                settings_.reference.defined() ? c10::str(settings_.reference.sizes()) : "none");
  const at::Tensor& logits = settings_.static_logits;
  HEADKIT_CHECK(is_double(logits, 2) && logits.size(0) == layers && logits.size(1) == heads,
                kOperation,
                c10::str("finite float64 static logits of shape [", layers, ", ", heads, "]"),
                logits.defined() ? c10::str(logits.sizes()) : "none");
  if (!settings_.fixed.defined()) settings_.fixed = at::zeros({layers, heads}, at::kChar);
  const at::Tensor& fixed = settings_.fixed;
  HEADKIT_CHECK(fixed.sizes() == logits.sizes() && fixed.scalar_type() == at::kChar &&
                    fixed.is_cpu() && (fixed.abs() <= 1).all().item<bool>(),
                kOperation,
                c10::str("int8 fixed heads of -1, 0, 1 and shape [", layers, ", ", heads, "]"),
                fixed.scalar_type(), " ", fixed.sizes());
  HEADKIT_CHECK(std::isfinite(settings_.threshold), kOperation, "a finite threshold",
                settings_.threshold);
  HEADKIT_CHECK(settings_.min_heads >= 0 && settings_.min_heads <= layers * heads, kOperation,
                c10::str("min_heads from 0 to ", layers * heads), settings_.min_heads);
  GateSet{{}, settings_.dropped_output}.check(kOperation, -1, layers, heads);
  settings_.fixed = fixed.contiguous();
  settings_.reference = settings_.reference.contiguous();
  weight_by_feature_ = weight.reshape({layers * heads, width}).t().contiguous();
}

at::Tensor LinearGate::logits(const at::Tensor& hidden, const at::Tensor& attention_mask) const {
  const at::Tensor pooled = pooled_state(kOperation, hidden, attention_mask, settings_.reference);
  return affine_rows(pooled, settings_.reference, weight_by_feature_,
                     settings_.static_logits.flatten())
      .reshape({hidden.size(0), settings_.weight.size(0), settings_.weight.size(1)});
}

at::Tensor LinearGate::open_heads(const at::Tensor& logits) const {
  const at::Tensor& fixed = settings_.fixed;
  HEADKIT_CHECK(
      logits.dim() == 3 && logits.scalar_type() == at::kDouble && logits.is_cpu() &&
          logits.sizes().slice(1) == fixed.sizes(),
      kOperation,
      c10::str("float64 logits of shape [batch, ", fixed.size(0), ", ", fixed.size(1), "]"),
      logits.scalar_type(), " of shape ", logits.sizes());
  const at::Tensor values = logits.contiguous();
  at::Tensor open = at::zeros_like(values);
  const Rule rule{fixed.const_data_ptr<int8_t>(), fixed.numel(), settings_.threshold,
                  settings_.min_heads};
  std::vector<Reason> reason(rule.heads);
  for (int64_t b = 0; b < values.size(0); ++b) {
    decide_row(values.const_data_ptr<double>() + b * rule.heads, rule, reason.data());
    double* const row = open.mutable_data_ptr<double>() + b * rule.heads;
    for (int64_t h = 0; h < rule.heads; ++h) row[h] = reason[h] != Reason::kClosed;
  }
  return open;
}

LinearGate LinearGate::with_mean_heads(const at::Tensor& logits, double mean_heads) const {
  const at::Tensor& fixed = settings_.fixed;
  HEADKIT_CHECK(logits.dim() == 3 && logits.scalar_type() == at::kDouble && logits.is_cpu() &&
                    logits.size(0) > 0 && logits.sizes().slice(1) == fixed.sizes(),
                kOperation,
                c10::str("float64 logits of shape [> 0, ", fixed.size(0), ", ", fixed.size(1), "]"),
                logits.scalar_type(), " of shape ", logits.sizes());
  HEADKIT_CHECK(mean_heads > 0 && mean_heads <= static_cast<double>(fixed.numel()), kOperation,
                c10::str("mean_heads in (0, ", fixed.numel(), "]"), mean_heads);
  const at::Tensor values = logits.contiguous();
  const double* const z = values.const_data_ptr<double>();
  const int64_t heads = fixed.numel(), samples = values.size(0);
  const int8_t* const is_fixed = fixed.const_data_ptr<int8_t>();

  std::vector<double> sorted;
  for (int64_t i = 0; i < values.numel(); ++i) {
    if (is_fixed[i % heads] == 0) sorted.push_back(z[i]);
  }
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  // Candidate k opens everything from sorted[k] upwards; the last one opens nothing.
  const auto threshold_at = [&](size_t k) {
    if (sorted.empty()) return 0.0;
    if (k == 0) return sorted.front() - 1;
    if (k == sorted.size()) return sorted.back() + 1;
    const double middle = sorted[k - 1] + (sorted[k] - sorted[k - 1]) / 2;
    return middle > sorted[k - 1] ? middle : sorted[k];
  };
  std::vector<Reason> reason(heads);
  const auto mean_at = [&](size_t k) {
    const Rule rule{is_fixed, heads, threshold_at(k), settings_.min_heads};
    int64_t open = 0;
    for (int64_t b = 0; b < samples; ++b) open += decide_row(z + b * heads, rule, reason.data());
    return static_cast<double>(open) / static_cast<double>(samples);
  };
  size_t low = 0, high = sorted.size();
  HEADKIT_CHECK(mean_at(high) <= mean_heads + 1e-9, kOperation,
                c10::str("a mean of at least ", mean_at(high), " heads (fixed heads and floor)"),
                mean_heads);
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (mean_at(middle) <= mean_heads + 1e-9) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  LinearGateSettings settings = settings_;
  settings.threshold = threshold_at(high);
  return LinearGate(std::move(settings));
}

LinearGate LinearGate::with_dropped_output(at::Tensor dropped_output) const {
  LinearGateSettings settings = settings_;
  settings.dropped_output = std::move(dropped_output);
  return LinearGate(std::move(settings));
}

GateSet LinearGate::decide(const GateInput& input, State& state) const {
  HEADKIT_CHECK(input.layer == 0, kOperation, "to be asked before layer 0", "layer ", input.layer);
  const at::Tensor logits = this->logits(input.hidden, input.attention_mask);
  const at::Tensor fixed = fixed_heads(settings_, state.present).contiguous();
  const int64_t batch = logits.size(0), layers = logits.size(1), heads = logits.size(2);
  const Rule rule{fixed.const_data_ptr<int8_t>(), layers * heads, settings_.threshold,
                  settings_.min_heads};
  const double* const z = logits.const_data_ptr<double>();
  at::Tensor open = at::zeros({batch, layers, heads}, at::kFloat);
  float* const gate = open.mutable_data_ptr<float>();
  std::vector<Reason> reason(rule.heads);

  const std::vector<int64_t> tokens =
      state.record ? valid_tokens(input.hidden, input.attention_mask) : std::vector<int64_t>();
  at::Tensor weight, deviation;
  if (state.record) {
    weight = settings_.weight.reshape({rule.heads, -1});
    deviation = input.hidden.detach().to(at::kCPU, at::kDouble) - settings_.reference;
  }
  for (int64_t b = 0; b < batch; ++b) {
    const double* const row = z + b * rule.heads;
    decide_row(row, rule, reason.data());
    for (int64_t h = 0; h < rule.heads; ++h)
      gate[b * rule.heads + h] = reason[h] != Reason::kClosed;
    if (!state.record) continue;

    DecisionRecord record = start_record(*this, state, layers, heads, tokens[b]);
    record.calibration = settings_.calibration;
    record.mode = "dynamic";
    record.reference = "calibration_mean";
    record.threshold = settings_.threshold;
    const at::Tensor places =
        input.attention_mask.defined()
            ? input.attention_mask[b].to(at::kCPU, at::kBool).nonzero().flatten()
            : at::arange(input.hidden.size(1));
    const at::Tensor parts = deviation[b]
                                 .index_select(0, places)
                                 .matmul(weight.t())
                                 .div(static_cast<double>(std::max<int64_t>(1, tokens[b])))
                                 .t()
                                 .contiguous();  // [heads, valid tokens]
    const int64_t* const place = places.const_data_ptr<int64_t>();
    for (int64_t h = 0; h < rule.heads; ++h) {
      HeadDecision decision;
      decision.layer = h / heads;
      decision.head = h % heads;
      decision.gate = gate[b * rule.heads + h];
      if (rule.fixed[h] != 0) {
        decision.state = rule.fixed[h] > 0 ? "always_on" : "pruned";
        const bool removed =
            state.present.layers() > 0 && !state.present.contains({decision.layer, decision.head});
        decision.reason = removed ? "removed" : "fixed";
      } else {
        decision.state = reason[h] == Reason::kClosed ? "off" : "on";
        decision.reason = reason[h] == Reason::kFloor ? "floor" : "score";
      }
      decision.logit = row[h];
      decision.threshold = settings_.threshold;
      decision.margin = row[h] - settings_.threshold;
      decision.base = settings_.static_logits.const_data_ptr<double>()[h];
      const double* const part = parts.const_data_ptr<double>() + h * parts.size(1);
      for (int64_t t = 0; t < parts.size(1); ++t) decision.parts.push_back({place[t], part[t]});
      std::stable_sort(decision.parts.begin(), decision.parts.end(),
                       [](const LogitPart& a, const LogitPart& b) {
                         return std::abs(a.value) > std::abs(b.value);
                       });
      double listed = *decision.base, rest = 0;
      for (size_t i = 0; i < decision.parts.size(); ++i) {
        (i < kListedParts ? listed : rest) += decision.parts[i].value;
      }
      if (decision.parts.size() > kListedParts) decision.parts.resize(kListedParts);
      decision.rest = rest;
      decision.residual = row[h] - (listed + rest);
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
  if (lambda >= 1) {
    // Not by a low threshold: what cannot be compared (NaN) runs too.
    settings.fixed = settings.fixed.masked_fill(settings.fixed == 0, 1);
  } else if (lambda <= 0) {
    settings.threshold = std::numeric_limits<double>::max();
  } else {
    const at::Tensor contested = settings.static_logits.masked_select(settings.fixed == 0);
    if (contested.numel() > 0) {
      const double mean = contested.mean().item<double>();
      const double deviation = (contested - mean).square().mean().sqrt().item<double>();
      const double scale = deviation > 0 ? deviation * std::numbers::sqrt3 / std::numbers::pi : 1;
      settings.threshold = mean + scale * std::log((1 - lambda) / lambda);
    }
  }
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
  return std::make_shared<LinearGate>(std::move(settings));
}

}  // namespace headkit
