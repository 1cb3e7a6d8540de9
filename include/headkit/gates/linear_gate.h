#pragma once

#include <optional>
#include <string>
#include <vector>

#include "headkit/core/head_mask.h"
#include "headkit/core/head_scores.h"
#include "headkit/gates/adjustable_policy.h"
#include "headkit/gates/linear_probe.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// Everything that a `LinearGate` is made of.
struct LinearGateSettings {
  at::Tensor weight;         ///< W, double [L, H, D + S]: pooled state, then S scalars
  at::Tensor reference;      ///< mu, double [D + S]: mean feature of the calibration inputs
  at::Tensor static_logits;  ///< s, double [L, H]: what the gate says of the average input
  /// int8 [L, H]: 0 = decided for each input, 1 = always on, -1 = pruned. Undefined = all 0.
  at::Tensor fixed;
  double threshold = 0;       ///< a head runs if its logit >= threshold
  int64_t min_heads = 1;      ///< every sample runs at least so many heads (its best ones), >= 0
  at::Tensor dropped_output;  ///< [L, H, D] or undefined
  std::string calibration;    ///< free text: what set the threshold
  /// Scalars beside the pooled state (gate_features.h).
  std::vector<std::string> features = {};
  std::optional<LinearProbe> probe = {};  ///< before layer 0, where a scalar needs one
};

/// One decision for all layers, taken before the first: u = mean of the layer-0 input over the
/// valid tokens (and scalars beside it), z = W (u - mu) + s, head on where z >= threshold. With W =
/// 0 it is static pruning by s.
///
/// z is computed in double in a fixed order over the sample's own tokens: a decision depends on the
/// sample alone, not on padding, batch or threads. Cost: T*D additions and one product [L*H, D] per
/// sample.
/// Because z is linear, each logit is exactly a base value plus one part a token and one a scalar
/// (decision_record.h).
class LinearGate final : public AdjustablePolicy {
 public:
  /// Throws std::invalid_argument on shapes or values that do not fit together.
  explicit LinearGate(LinearGateSettings settings);
  std::string name() const override { return "linear_gate"; }
  GateSet decide(const GateInput& input, State& state) const override;
  /// Lambda sets the threshold: the quantile 1 - lambda of the logistic distribution with mean and
  /// variance of the contested heads' static logits, so about a share lambda of them runs for the
  /// average input. 1 runs all heads that are not pruned, 0 the floor and what is always on.
  std::shared_ptr<GatePolicy> at(double lambda) const override;
  std::string to_json() const override;
  static std::shared_ptr<LinearGate> from_json(const std::string& text);

  const LinearGateSettings& settings() const { return settings_; }
  /// z, double [B, L, H], CPU, from hidden [B, T, D] and bool mask [B, T] (may be undefined). A
  /// sample without valid tokens gets the static logits.
  at::Tensor logits(const at::Tensor& hidden, const at::Tensor& attention_mask) const;
  /// What z is linear in, double [B, D + S] (gate_features.h).
  at::Tensor features(const at::Tensor& hidden, const at::Tensor& attention_mask) const;
  /// 0/1, double [B, L, H], from logits of that shape: threshold, fixed heads and floor.
  at::Tensor open_heads(const at::Tensor& logits) const;
  /// The same gate with another compensation, [L, H, D] or undefined.
  LinearGate with_dropped_output(at::Tensor dropped_output) const;
  /// The same gate with the threshold that lets the samples behind `logits` [N, L, H] run
  /// `mean_heads` heads on average: the closest reachable mean that does not exceed it, floor and
  /// fixed heads included. Throws if those alone exceed it.
  LinearGate with_mean_heads(const at::Tensor& logits, double mean_heads) const;

 private:
  const LinearProbe* probe() const;
  at::Tensor logits_of(const at::Tensor& features) const;

  LinearGateSettings settings_;
  at::Tensor weight_by_feature_;  // [D, L*H], so that a product runs along contiguous heads
};

/// Settings of `fit_linear_gate` and `fit_layer_gate`.
struct LinearGateFit {
  double mean_heads = 0;        ///< required: heads that run on average, in (0, L*H]
  at::Tensor dropped_output{};  ///< [L, H, D]: compensation, used while fitting as well
  HeadScores scores{};          ///< static scores behind s; values undefined = mean of the targets
  double ridge = -1;            ///< penalty relative to the mean feature variance; < 0 = by GCV
  double huber = 1.345;         ///< robust loss beyond so many robust deviations; 0 = squares only
  /// Weight of the rank loss beside the squares: for each input and layer, the heads that it needs
  /// most (as many as the layer runs on average) should have larger logits than the others. 0 =
  /// none.
  double rank_weight = 0;
  int64_t min_heads = 1;
  /// Heads that the threshold opens for less than this share of the calibration inputs are pruned,
  /// for more than 1 - share always on. 0 = only where all inputs agree.
  double settled_share = 0.005;
  std::vector<std::string> features{};  ///< scalars beside the pooled state (gate_features.h)
  bool labels_of_data = false;  ///< what a probe learns, where a scalar needs one (linear_probe.h)
  Progress progress{};          ///< batches done, over both data sources
};

/// What fitting found out.
struct LinearGateReport {
  int64_t fitted_examples = 0;
  int64_t calibration_examples = 0;
  double ridge = 0;      ///< the penalty taken; infinity = W is 0, the gate is static
  double explained = 0;  ///< share of the targets' variance over inputs that W explains, by GCV
  double input_variance = 0;  ///< share of Var(z) within heads, that is: due to the input
  double mean_heads = 0;      ///< on the calibration inputs
  int64_t contested = 0;      ///< heads that some inputs open and others close
};

/// What `fit_linear_gate` returns.
struct FittedLinearGate {
  std::shared_ptr<LinearGate> gate;
  LinearGateReport report;
};

/// Fits W on `train` and the threshold on `calibration` (other examples).
///
/// Target of head h for input b: log(|dL_b / dg_h| + eps) at the dense point, minus the input's own
/// mean over heads, so that a hard input does not look as if all its heads mattered; W is the ridge
/// regression of its deviation from the head's mean on u - mu, s the log of the static scores. With
/// `rank_weight`, W minimises the sum of the (Huber) squares, the penalty, and that weight times,
/// for each input and layer, the mean of log(1 + exp(z_j - z_i)) over heads i of its k largest
/// targets and j of the others, weighed by the difference of their targets; k is the layer's share
/// of `mean_heads`, rounded, at least 1 and less than all.
/// Cost: one forward and one backward over `train`, one embedding over `calibration`.
/// Throws std::invalid_argument for an objective whose gradient at the dense model is zero.
/// Source: importance Michel, Levy, Neubig 2019; regression target after Akhauri et al. 2024
/// (ShadowLLM); GCV Golub, Heath, Wahba 1979; Huber 1964.
FittedLinearGate fit_linear_gate(GatedModel& model, const DataSource& train,
                                 const DataSource& calibration, const Objective& objective,
                                 const LinearGateFit& options);

}  // namespace headkit
