#pragma once

#include "headkit/gates/learned_gates.h"

namespace headkit {

/// Relaxed choice of k of N scores: sum over j of softmax(r / t) with r lowered after each pick by
/// log(1 - p). `scores`: float64 of any shape, at least one entry; the result has that shape, sums
/// to k, and is differentiable. Entries can exceed 1. As t falls it becomes the hard choice, finite
/// for every t > 0. O(k N). Source: Xie, Ermon 2019.
at::Tensor relaxed_subset(const at::Tensor& scores, int64_t k, double temperature);
/// Exactly k ones, 0 elsewhere; ties go to the lower index. `scores` of any shape, no NaN.
at::Tensor hard_subset(const at::Tensor& scores, int64_t k);

/// A temperature that falls exponentially from `first` to `last` over `cooldown_steps`, then stays.
struct TemperatureSchedule {
  double first = 10;
  double last = 0.1;
  int64_t cooldown_steps = 1000;
  double at(int64_t step) const;
  void check(const char* operation) const;  ///< std::invalid_argument unless all are positive
};

/// Settings of `SubsetGates`.
struct SubsetSettings {
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t keep = 0;  ///< K, 0 .. L*H
  TemperatureSchedule temperature = {};
  /// Forward with exactly K ones, gradient of the relaxed choice replaced by the identity.
  bool straight_through = false;
  /// Relaxed gates above 1 become 1 (they then sum to less than K); false leaves them.
  bool clip = true;
};

/// Differentiable subset pruning: one parameter "w" [L, H], float64, of which exactly K heads are
/// chosen: relaxed and with Gumbel noise while training, the top K of w without noise in use.
/// Clip the gradient of w on its own; below t ~ 0.1 it explodes, below 1e-3 it vanishes. Source:
/// Li, Cotterell, Sachan 2021; published settings cool from 1000 to 1e-8, at whose start every gate
/// is K/N; ours from 10 to 0.1.
class SubsetGates final : public LearnedGates {
 public:
  /// Throws std::invalid_argument on sizes below 1 or K outside 0 .. L*H.
  explicit SubsetGates(SubsetSettings settings);
  std::string name() const override { return "subset"; }
  const SubsetSettings& settings() const { return settings_; }

  GateSet sample(int64_t step, int64_t examples, const at::Generator& generator) const override;
  GateSet soft(int64_t step) const override;
  GateSet hard() const override;
  at::Tensor penalty(int64_t step) const override;  ///< 0: the number of heads is exact
  std::string describe(int64_t step) const override;

 private:
  GateSet gates(const at::Tensor& scores, int64_t step) const;
  SubsetSettings settings_;
};

}  // namespace headkit
