#include "headkit/gates/linear_logits.h"

#include <ATen/ATen.h>

#include "gates/affine_rows.h"
#include "headkit/core/error.h"
#include "headkit/gates/calibrated_policy.h"
#include "headkit/gates/gate_features.h"
#include "headkit/gates/layer_gate.h"
#include "headkit/gates/linear_gate.h"

namespace headkit {
namespace {

constexpr auto kOperation = "linear_logits";

bool is_finite_double(const at::Tensor& t, at::IntArrayRef sizes) {
  return t.defined() && t.is_cpu() && t.scalar_type() == at::kDouble && t.sizes() == sizes &&
         t.isfinite().all().item<bool>();
}

std::string told(const at::Tensor& t) {
  return t.defined() ? c10::str(t.scalar_type(), " of shape ", t.sizes()) : "none";
}

std::string name_of(const at::Tensor& reference) {
  return reference.any().item<bool>() ? "calibration_mean" : "origin";
}

LinearLogits decision_of(const LinearGateSettings& s) {
  LinearLogits decision;
  for (int64_t l = 0; l < s.weight.size(0); ++l) {
    for (int64_t h = 0; h < s.weight.size(1); ++h) decision.heads.push_back({l, h});
  }
  decision.weight = s.weight.flatten(0, 1);
  decision.reference = s.reference;
  decision.base = s.static_logits.flatten();
  decision.rule = {.threshold = s.threshold, .min_heads = s.min_heads, .fixed = s.fixed.flatten()};
  decision.reference_name = name_of(s.reference);
  decision.features = s.features;
  decision.probe = s.probe;
  return decision;
}

LinearLogits decision_of(const LayerGateSettings& s, int64_t layer) {
  LinearLogits decision;
  decision.layer = layer;
  for (int64_t h = 0; h < s.weight.size(1); ++h) decision.heads.push_back({layer, h});
  decision.weight = s.weight[layer];
  decision.reference = s.reference[layer];
  decision.base = s.static_logits[layer];
  decision.rule = {.threshold = s.threshold, .min_heads = s.min_heads, .fixed = s.fixed[layer]};
  decision.reference_name = name_of(s.reference);
  decision.features = s.features;
  if (!s.probes.empty()) decision.probe = s.probes[static_cast<size_t>(layer)];
  return decision;
}

}  // namespace

std::vector<LinearLogits> linear_logits(const GatePolicy& policy) {
  if (const auto* gate = dynamic_cast<const LinearGate*>(&policy)) {
    return {decision_of(gate->settings())};
  }
  std::vector<LinearLogits> decisions;
  if (const auto* gate = dynamic_cast<const LayerGate*>(&policy)) {
    for (const int64_t l : gate->decision_layers()) {
      decisions.push_back(decision_of(gate->settings(), l));
    }
  } else if (const auto* calibrated = dynamic_cast<const CalibratedPolicy*>(&policy)) {
    return linear_logits(*calibrated->policy().at(calibrated->lambda()));
  }
  return decisions;
}

void LinearLogits::check(const char* operation) const {
  HEADKIT_CHECK(weight.defined() && weight.dim() == 2 && is_finite_double(weight, weight.sizes()),
                operation, "a finite float64 weight of shape [heads, D + scalars] on the CPU",
                told(weight));
  const int64_t count = weight.size(0), total = weight.size(1);
  HEADKIT_CHECK(total > static_cast<int64_t>(features.size()), operation,
                c10::str("a weight of more than ", features.size(), " features"), total);
  HEADKIT_CHECK(static_cast<int64_t>(heads.size()) == count, operation,
                c10::str("names of ", count, " heads"), heads.size());
  HEADKIT_CHECK(is_finite_double(reference, {total}), operation,
                c10::str("a finite float64 reference of shape [", total, "]"), told(reference));
  HEADKIT_CHECK(is_finite_double(base, {count}), operation,
                c10::str("finite float64 base logits of shape [", count, "]"), told(base));
  HEADKIT_CHECK(!reference_name.empty(), operation, "a name of the reference", "none");
  check_scalar_features(operation, features, probe ? &*probe : nullptr);
  rule.check(operation, count);
}

int64_t LinearLogits::width() const {
  return weight.size(1) - static_cast<int64_t>(features.size());
}

at::Tensor LinearLogits::features_of(const at::Tensor& hidden,
                                     const at::Tensor& attention_mask) const {
  HEADKIT_CHECK(hidden.defined() && hidden.dim() == 3 && hidden.size(2) == width(), kOperation,
                c10::str("hidden states of shape [batch, tokens, ", width(), "]"),
                hidden.defined() ? c10::str("shape ", hidden.sizes()) : "none");
  return gate_features(kOperation, features, probe ? &*probe : nullptr, hidden, attention_mask,
                       reference);
}

at::Tensor LinearLogits::logits(const at::Tensor& hidden, const at::Tensor& attention_mask) const {
  return affine_rows(features_of(hidden, attention_mask), reference, weight.t().contiguous(), base);
}

LinearLogits LinearLogits::in(const HeadMask& present) const {
  if (present.layers() == 0) return *this;
  LinearLogits some = *this;
  some.rule.fixed = rule.fixed.defined()
                        ? rule.fixed.clone()
                        : at::zeros({static_cast<int64_t>(heads.size())}, at::kChar);
  for (size_t m = 0; m < heads.size(); ++m) {
    if (!present.contains(heads[m])) some.rule.fixed[static_cast<int64_t>(m)] = -1;
  }
  return some;
}

}  // namespace headkit
