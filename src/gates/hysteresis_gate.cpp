#include "headkit/gates/hysteresis_gate.h"

#include <ATen/ATen.h>

#include <cmath>

#include "gates/early_record.h"
#include "gates/policy_json.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {
constexpr auto kOperation = "hysteresis";
}

void HysteresisGate::SequenceState::reorder(const at::Tensor& index) {
  if (open.defined()) open = open.index_select(0, index);
}

HysteresisGate::HysteresisGate(std::shared_ptr<const LinearGate> gate, double margin)
    : gate_(std::move(gate)), margin_(margin) {
  HEADKIT_CHECK(gate_ != nullptr, kOperation, "a linear gate", "none");
  HEADKIT_CHECK(margin >= 0 && std::isfinite(margin), kOperation, "a finite margin >= 0", margin);
}

GateSet HysteresisGate::decide(const GateInput& input, State& state) const {
  HEADKIT_CHECK(input.layer == 0, kOperation, "to be asked before layer 0", "layer ", input.layer);
  HEADKIT_CHECK(!state.record, kOperation, "a state that does not record", "one that does");
  at::Tensor logits = gate_->logits(input.hidden, input.attention_mask);
  auto* const sequences = dynamic_cast<SequenceState*>(&state);
  if (sequences != nullptr && sequences->open.defined() &&
      sequences->open.sizes() == logits.sizes()) {
    logits = logits + margin_ * (2 * sequences->open - 1);
  }
  const at::Tensor open = gate_->open_heads(logits);
  if (sequences != nullptr) sequences->open = open;
  GateSet gates;
  gates.heads = open.to(gate_options(input.hidden));
  if (state.present.layers() > 0) gates.heads = gates.heads * state.present.keep().to(gates.heads);
  gates.dropped_output = fitting_dropped_output(gate_->settings().dropped_output, input.hidden);
  return gates;
}

std::shared_ptr<GatePolicy> HysteresisGate::at(double lambda) const {
  return std::make_shared<HysteresisGate>(
      std::dynamic_pointer_cast<const LinearGate>(gate_->at(lambda)), margin_);
}

std::string HysteresisGate::to_json() const {
  Json json = policy_json("hysteresis");
  json["of"] = parse_json(kOperation, gate_->to_json());
  json["margin"] = margin_;
  return json.dump();
}

std::shared_ptr<HysteresisGate> HysteresisGate::from_json(const std::string& text) {
  const Json json = read_policy_json("hysteresis", text);
  return std::make_shared<HysteresisGate>(
      LinearGate::from_json(member(kOperation, json, "of").dump()),
      number_member(kOperation, json, "margin"));
}

}  // namespace headkit
