#pragma once

#include <memory>

#include "headkit/gates/linear_gate.h"

namespace headkit {

/// A linear gate that does not flicker while one sequence grows: from the second decision on, a
/// head that is open closes only below threshold - margin, one that is closed opens only from
/// threshold + margin on. What was open is kept in the state: take a fresh one (`start`) for new
/// sequences.
class HysteresisGate final : public AdjustablePolicy {
 public:
  /// What was open for each sequence of a batch.
  struct SequenceState : State {
    at::Tensor open;  ///< double 0/1 [B, L, H] of the last decision; undefined before the first
    /// For beam search: the sequences go on as these; `index`: int64 [n].
    void reorder(const at::Tensor& index);
  };

  /// Throws std::invalid_argument without a gate or for a margin that is not finite and >= 0.
  HysteresisGate(std::shared_ptr<const LinearGate> gate, double margin);
  std::string name() const override { return "hysteresis"; }
  std::unique_ptr<State> start() const override { return std::make_unique<SequenceState>(); }
  /// With a plain state, without hysteresis. A batch of another size starts anew. Throws
  /// std::invalid_argument for a state that records: the margin would not be told.
  GateSet decide(const GateInput& input, State& state) const override;
  /// The lambda of the linear gate.
  std::shared_ptr<GatePolicy> at(double lambda) const override;
  std::string to_json() const override;
  static std::shared_ptr<HysteresisGate> from_json(const std::string& text);

  const LinearGate& gate() const { return *gate_; }
  double margin() const { return margin_; }

 private:
  std::shared_ptr<const LinearGate> gate_;
  double margin_;
};

}  // namespace headkit
