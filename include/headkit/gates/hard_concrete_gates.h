#pragma once

#include "headkit/gates/hard_concrete.h"
#include "headkit/gates/learned_gates.h"

namespace headkit {

/// Settings of `HardConcreteGates`.
struct HardConcreteSettings {
  int64_t layers = 0;
  int64_t heads = 0;
  HardConcrete shape = {};
  double penalty = 0.01;  ///< lambda, times the expected number of open heads: a SUM over all heads
  /// log_alpha at the start, >= 2.5: a lower one starts a converged model half closed.
  double start = 2.5;
  bool per_example = false;  ///< a sample for each example instead of one for the batch
};

/// L0-regularised head gates, parameter "log_alpha" [L, H] float32: hard concrete samples while
/// training, plus lambda * sum of P(open). How many heads stay follows from lambda; `hard` opens
/// the heads with log_alpha > 0. Source: Voita et al. 2019, with a sum over all heads as in the
/// paper (the released code averages over modules).
class HardConcreteGates final : public LearnedGates {
 public:
  /// Throws std::invalid_argument on sizes below 1, start < 2.5 or a negative penalty.
  explicit HardConcreteGates(HardConcreteSettings settings);
  std::string name() const override { return "hard_concrete"; }
  const HardConcreteSettings& settings() const { return settings_; }
  /// Another lambda from here on, >= 0.
  void set_penalty(double penalty);

  GateSet sample(int64_t step, int64_t examples, const at::Generator& generator) const override;
  GateSet soft(int64_t step) const override;
  GateSet hard() const override;
  at::Tensor penalty(int64_t step) const override;
  std::string describe(int64_t step) const override;

 private:
  HardConcreteSettings settings_;
};

}  // namespace headkit
