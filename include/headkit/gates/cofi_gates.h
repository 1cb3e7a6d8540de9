#pragma once

#include "headkit/core/head_layout.h"
#include "headkit/gates/hard_concrete.h"
#include "headkit/gates/learned_gates.h"

namespace headkit {

/// Settings of `CofiGates`.
struct CofiSettings {
  HeadLayout layout = {};
  double target_sparsity = 0.5;  ///< share of the weights of all blocks that goes, in [0, 1)
  bool attention_sublayers = true;
  bool neurons = true;
  bool feed_forward_sublayers = true;
  bool hidden = false;  ///< dimensions of the residual stream; few models have gates of them
  HardConcrete shape = {.beta = 2.0 / 3};
  double start = 10;       ///< mean of log_alpha at the start, with a deviation of 0.01
  int64_t ramp_steps = 0;  ///< steps over which the target grows from 0
  bool absolute = false;   ///< |s - t| in the Lagrangian, against overshooting on small data
  int64_t matrices = 2;    ///< of a feed-forward block; 3 where it is gated
  uint64_t seed = 0;       ///< of the start
};

/// CoFi: hard concrete gates of heads, neurons, whole sublayers and hidden dimensions at once,
/// driven to a sparsity of weights by a Lagrangian. Parameters: log_alpha by kind of unit, named as
/// in GateSet, float32, held in [ln 0.01, ln 100] after each step, and "multipliers" [2], which
/// ascend. `hard` closes as many units of a group as are expected to be 0 (a group: the heads or
/// the neurons of a layer, a sublayer, all hidden dimensions) and leaves the others at their soft
/// value, to be folded into the weights. Source: Xia, Zhong, Chen 2022.
class CofiGates final : public LearnedGates {
 public:
  /// Throws std::invalid_argument on sizes, sparsity or shape out of range, and for neurons of a
  /// layout without them.
  explicit CofiGates(CofiSettings settings);
  std::string name() const override { return "cofi"; }
  const CofiSettings& settings() const { return settings_; }

  GateSet sample(int64_t step, int64_t examples, const at::Generator& generator) const override;
  GateSet soft(int64_t step) const override;
  GateSet hard() const override;
  at::Tensor penalty(int64_t step) const override;
  void after_step() override;
  std::string describe(int64_t step) const override;

  /// 1 - expected size / full size: a scalar, float64, differentiable.
  at::Tensor expected_sparsity() const;

 private:
  CofiSettings settings_;
};

/// The deterministic value of an open gate, sigmoid(0.8 log_alpha / beta).
at::Tensor cofi_soft_value(const at::Tensor& log_alpha, const HardConcrete& shape);
/// By row (last axis): as many of the lowest soft values as gates are expected to be 0, rounded,
/// become 0; the others stay.
at::Tensor cofi_inference_mask(const at::Tensor& log_alpha, const HardConcrete& shape);
/// log_alpha in [ln 0.01, ln 100].
at::Tensor cofi_clamp(const at::Tensor& log_alpha);

}  // namespace headkit
