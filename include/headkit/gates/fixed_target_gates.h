#pragma once

#include <optional>

#include "headkit/core/head_layout.h"
#include "headkit/gates/hard_concrete.h"
#include "headkit/gates/learned_gates.h"

namespace headkit {

/// Settings of `FixedTargetGates`.
struct FixedTargetSettings {
  HeadLayout layout = {};
  /// Units that stay, by kind; not set = the kind has no gates. At least one is set.
  std::optional<int64_t> heads = {};
  std::optional<int64_t> attention_sublayers = {};
  std::optional<int64_t> neurons = {};
  std::optional<int64_t> feed_forward_sublayers = {};
  std::optional<int64_t> hidden = {};
  /// `heads` and `neurons` are counts for each layer instead of for the whole model.
  bool per_layer = false;
  HardConcrete shape = {.beta = 2.0 / 3};
  /// log_alpha at the start. Published: 5, with a rate of 1; small rates spend their steps on gates
  /// that are all 1 then, while the multipliers grow.
  double start = 2.5;
  /// Steps over which targets fall from everything: most of the training, so that units close one
  /// by one and not all at once.
  int64_t ramp_steps = 0;
};

/// Hard concrete gates with a target count for each kind of unit and a Lagrangian for each count:
/// exact shapes. Parameters: log_alpha by kind, named as in GateSet, and "KIND_multipliers" [2] (or
/// [2, L] with `per_layer`), which ascend. `hard` opens the units of largest log_alpha, exactly as
/// many as the target says; ties go to the lower index. With heads alone an exact-K hard concrete.
/// Source: Xia, Gao, Zeng, Chen 2024 (Sheared LLaMA).
class FixedTargetGates final : public LearnedGates {
 public:
  /// Throws std::invalid_argument on counts out of range, and if none is set.
  explicit FixedTargetGates(FixedTargetSettings settings);
  std::string name() const override { return "fixed_target"; }
  const FixedTargetSettings& settings() const { return settings_; }

  GateSet sample(int64_t step, int64_t examples, const at::Generator& generator) const override;
  GateSet soft(int64_t step) const override;
  GateSet hard() const override;
  at::Tensor penalty(int64_t step) const override;
  std::string describe(int64_t step) const override;

 private:
  FixedTargetSettings settings_;
};

}  // namespace headkit
