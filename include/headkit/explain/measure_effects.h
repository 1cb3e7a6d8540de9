#pragma once

#include <functional>
#include <string>
#include <vector>

#include "headkit/core/gate_set.h"
#include "headkit/explain/head_effects.h"
#include "headkit/explain/output_metric.h"
#include "headkit/gates/gate_policy.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// Settings of `measure_effects`.
struct EffectOptions {
  /// Required: what stands in for a head. zero = nothing; mean = its mean output over the tokens of
  /// `reference`; resample = its mean output over the tokens of another input of `reference`.
  std::string ablation = {};
  const DataSource* reference = nullptr;  ///< for mean and resample
  int64_t draws = 8;                      ///< inputs that resample draws

  GateSet gates = {};                  ///< of the run that is explained; empty = every head is on
  const GatePolicy* policy = nullptr;  ///< decides them instead
  MetricChoice choice = {};

  bool toggles = true;     ///< single toggles of every head
  int64_t path_nodes = 0;  ///< of the integrated gate gradient, 16 to 32; 0 = not computed
  int64_t pair_heads =
      0;  ///< heads with the largest toggles whose pairs are played, 20 = 190 pairs
  int64_t game_heads = 0;  ///< heads with the largest toggles that Shapley values are shared among
  int64_t orders = 64;     ///< of these heads, where all sets would cost more; even
  std::string interaction = "fsii";  ///< of the same heads: fsii, sii (game_heads <= 12), none
  double confidence = 0.95;          ///< of intervals
  int64_t bootstrap = 1000;          ///< resamples over draws or inputs
  uint64_t seed = 0;
  Progress progress = {};  ///< inputs done
};

/// What every head contributes to `metric`, one InputEffects an example of `batch`.
///
/// Every example runs alone, so neighbours and the size of a batch do not show. Costs, F = one
/// forward, B = one backward: write norm, gate gradient and direct effect 3F + 2B; toggles about
/// half of heads * F, more with a policy that decides midway; pairs k(k - 1)/2 F; the path nodes *
/// (F + B); the game 2^k or orders * k F. Runs start at the first layer that changes and share
/// forwards. The model and what is passed in stay as they are.
///
/// Throws std::invalid_argument for options, gates or a metric that do not fit;
/// std::runtime_error for values that are not finite.
/// Source: Michel, Levy, Neubig 2019 (gate gradient; here signed); Sundararajan et al. 2017
/// (paths); Tsai et al. 2023 (FSII); Grabisch, Roubens 1999 (SII).
std::vector<InputEffects> measure_effects(GatedModel& model, const Batch& batch,
                                          const OutputMetric& metric, const EffectOptions& options);

/// The mean of each quantity over inputs, with intervals over inputs for toggles, repair and pairs.
/// What one input lacks is left out. `value` is the mean of m, `input` the number of inputs. Throws
/// std::invalid_argument for none, and for results that differ in metric, ablation or heads.
InputEffects mean_effects(const std::vector<InputEffects>& inputs, double confidence = 0.95,
                          int64_t bootstrap = 1000, uint64_t seed = 0);

}  // namespace headkit
