#include "headkit/gates/hysteresis_gate.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace headkit {
namespace {

// The logit of each of two heads is the feature, with either sign.
std::shared_ptr<LinearGate> signs() {
  LinearGateSettings settings;
  settings.weight = at::tensor({1.0, -1.0}, at::kDouble).reshape({1, 2, 1});
  settings.reference = at::zeros({1}, at::kDouble);
  settings.static_logits = at::zeros({1, 2}, at::kDouble);
  settings.threshold = 0.5;
  settings.min_heads = 0;
  return std::make_shared<LinearGate>(settings);
}

GateInput at_feature(const std::vector<double>& values) {
  return {0, at::tensor(values, at::kDouble).reshape({-1, 1, 1}), {}};
}

TEST(HysteresisGateTest, SwitchesOnlyBeyondTheMargin) {
  const HysteresisGate gate(signs(), 0.25);
  const auto state = gate.start();
  bool open = false, first = true;
  for (const double value : {0.6, 0.4, 0.3, 0.2, 0.4, 0.6, 0.7, 0.8, 0.6, -1.0, 0.74, 0.76}) {
    if (first) {
      open = value >= 0.5;
    } else {
      open = open ? value >= 0.25 : value >= 0.75;
    }
    first = false;
    const at::Tensor gates = gate.decide(at_feature({value}), *state).heads;
    EXPECT_EQ(gates[0][0][0].item<double>() != 0, open) << value;
  }
}

TEST(HysteresisGateTest, KeepsSequencesApartAndLetsThemBeReordered) {
  const HysteresisGate gate(signs(), 0.25);
  const auto state = gate.start();
  gate.decide(at_feature({1, 0}), *state);
  at::Tensor gates = gate.decide(at_feature({0.4, 0.4}), *state).heads;
  EXPECT_EQ(gates[0][0][0].item<double>(), 1);
  EXPECT_EQ(gates[1][0][0].item<double>(), 0);
  dynamic_cast<HysteresisGate::SequenceState&>(*state).reorder(at::tensor({1, 1}, at::kLong));
  gates = gate.decide(at_feature({0.4, 0.4}), *state).heads;
  EXPECT_EQ(gates.sum().item<double>(), 0);
  // A batch of another size, a fresh state and a plain one know of nothing.
  EXPECT_EQ(gate.decide(at_feature({0.6}), *state).heads[0][0][0].item<double>(), 1);
  GatePolicy::State plain;
  gate.decide(at_feature({1}), plain);
  EXPECT_EQ(gate.decide(at_feature({0.4}), plain).heads[0][0][0].item<double>(), 0);
}

TEST(HysteresisGateTest, TurnsAndRoundTripsAsItsGate) {
  const HysteresisGate gate(signs(), 0.25);
  const auto again = policy_from_json(gate.to_json());
  EXPECT_EQ(again->to_json(), gate.to_json());
  GatePolicy::State state;
  EXPECT_EQ(gate.at(1)->decide(at_feature({0}), state).heads.sum().item<double>(), 2);
  EXPECT_EQ(gate.at(0)->decide(at_feature({0}), state).heads.sum().item<double>(), 0);
  EXPECT_THROW(HysteresisGate(signs(), -1), std::invalid_argument);
  EXPECT_THROW(HysteresisGate(signs(), NAN), std::invalid_argument);
  EXPECT_THROW(HysteresisGate(nullptr, 1), std::invalid_argument);
  state.record = true;
  EXPECT_THROW(gate.decide(at_feature({0}), state), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
