#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "headkit/core/head_layout.h"

namespace headkit {

/// A head whose gate opened or closed when another head was toggled.
struct FlippedGate {
  HeadId head;
  bool on = false;  ///< after the toggle
  bool operator==(const FlippedGate&) const = default;
};

/// What happens to m when one head is replaced by an ablation: m(with the head) - m(replaced).
/// Evidence level L2.
struct ToggleEffect {
  /// zero, mean, resample; of a head that is off what its closed gate adds: zero or compensation.
  std::string ablation;
  double frozen = 0;  ///< every other gate keeps its value
  /// The same, where later gates are decided again after the toggle. Unset = not computed.
  std::optional<double> redecided;
  /// Interval of `frozen` over draws (resample) or, in a mean over inputs, over these.
  std::optional<double> lower, upper;

  /// Routing-mediated effect: what the head does to m by moving other gates.
  std::optional<double> routing_mediated() const;
  bool operator==(const ToggleEffect&) const = default;
};

/// What one head contributes to m, for one input. Positive always means that the head supports m.
/// What is unset was not computed; it is never 0.
struct HeadEffects {
  HeadId head;
  double gate = 1;  ///< in the run that is explained; 0 = off
  /// Mean over valid tokens of ||g o||, o the head's output through W_O; of a head that is off, of
  /// ||o||: what it would write. L0.
  std::optional<double> write_norm;
  std::optional<double> relative_write_norm;  ///< divided by the mean norm of the residual stream
  /// <N(g o), readout>, N the final norm with its scale frozen; of a head that is off at g = 1. L1.
  std::optional<double> direct;
  bool direct_linearised = false;  ///< more than the last norm was frozen, or the readout bends
  /// g dm/dg, signed; of a head that is off dm/dg at g = 0. L1.
  std::optional<double> gate_gradient;
  std::optional<double> integrated_gate_gradient;  ///< along a path from no heads to the gates. L1.
  std::optional<ToggleEffect> toggle;
  std::optional<double> shapley;        ///< among the heads that were played. L2.
  std::optional<double> shapley_error;  ///< standard error over orders; unset where exact
  std::optional<double> repair_lower, repair_upper;  ///< over inputs, in a mean over these
  std::vector<FlippedGate> flipped_gates;  ///< by the toggle, where gates were decided again

  bool on() const { return gate != 0; }
  /// Self-repair: direct - toggle.frozen, where both are known and m is the same.
  std::optional<double> repair() const;
  /// The strongest evidence among what was computed: L0, L1 or L2; empty for none.
  std::string level() const;
  bool operator==(const HeadEffects&) const = default;
};

/// What two heads do to m together beyond what each does alone. L2.
struct PairEffect {
  HeadId a, b;
  /// synergy: m - m_{-a} - m_{-b} + m_{-ab}; sii, fsii: interaction indices of order two.
  std::string index;
  double value = 0;  ///< > 0 complementary, < 0 redundant
  std::string ablation;
  std::optional<double> lower, upper;
  bool operator==(const PairEffect&) const = default;
};

/// A quantity that is missing, and why.
struct NotComputed {
  std::string quantity;
  std::string reason;
  bool operator==(const NotComputed&) const = default;
};

/// What the heads of one input contribute to one m. Results for different m are never mixed.
struct InputEffects {
  int64_t input = 0;                          ///< number of the example
  std::string metric;                         ///< of m (output_metric.h)
  std::optional<int64_t> target, distractor;  ///< classes or tokens that m compares
  double value = 0;                           ///< m(x; g)
  std::optional<double> value_without_heads;  ///< m with every gate 0
  std::string ablation;   ///< kind of every toggle, pair and Shapley value here; empty = none made
  std::string reference;  ///< what the ablation puts in a head's place
  /// How `redecided` came about: measured; by_construction, where gates read the model's input only
  /// and no toggle moves them; empty = not computed.
  std::string routing;
  std::optional<double> path_gap;  ///< m(g) - m(0) - the sum of integrated gate gradients
  /// m - (heads + other blocks + what is embedded + biases), by direct paths.
  std::optional<double> direct_residual;
  std::vector<HeadEffects> heads;  ///< those that are physically there, by layer, then head
  std::vector<PairEffect> pairs;
  std::vector<NotComputed> not_computed;

  /// One JSON object. Throws std::invalid_argument for a value that is not finite.
  std::string to_json() const;
  /// The members of a decision record that this fills: output, heads[].effects and pairs, as one
  /// JSON object (docs/reference/decision_record.schema.json).
  std::string record_patch() const;
  /// Throws std::invalid_argument for what `to_json` does not write; other members are ignored.
  static InputEffects from_json(const std::string& text);
  bool operator==(const InputEffects&) const = default;
};

}  // namespace headkit
