#pragma once

#include <memory>
#include <string>
#include <vector>

#include "headkit/gates/hard_concrete.h"
#include "headkit/gates/layer_gate.h"
#include "headkit/gates/learned_gates.h"
#include "headkit/gates/linear_gate.h"

namespace headkit {

/// How a logit z becomes a gate while training; the deployed gate is 1 where z >= 0.
enum class GateRelaxation {
  /// 1[z + noise > 0] forward, sigmoid((z + noise) / temperature) backward. Bengio et al. 2013 with
  /// the binary concrete noise of Maddison et al. 2017.
  kStraightThrough,
  /// Hard concrete samples with log_alpha = z (hard_concrete.h).
  kHardConcrete,
};

/// Settings of gates that are trained to read the input.
struct InputGateSettings {
  /// Share of the cost of all heads that runs on average, in (0, 1]. Required.
  double budget = 0;
  GateRelaxation relaxation = GateRelaxation::kStraightThrough;
  double temperature = 1;  ///< of the straight-through gates, > 0
  HardConcrete shape = {};
  /// Standard deviation of the contested heads' static logits at the start: how firm they are.
  double start_spread = 1;
  double weight_penalty = 1e-3;  ///< times the mean square of W, for features of unit variance
  int64_t ramp_steps = 0;        ///< over which the budget moves from that of the start to its own
  at::Tensor costs = {};         ///< double [L, H], >= 0; undefined = 1 each
};

/// A linear gate as parameters that training can change: "weight" (of features of unit variance),
/// "logits", and the Lagrange multipliers of the budget. At the start it decides as the gate that
/// it came from; one with W = 0 is the static mask of its logits.
class InputGates {
 public:
  /// `scale`: for each decision the standard deviation of its features, double [D + S]. Throws
  /// std::invalid_argument on settings out of range.
  InputGates(const LinearGate& start, std::vector<at::Tensor> scale, InputGateSettings settings);
  InputGates(const LayerGate& start, std::vector<at::Tensor> scale, InputGateSettings settings);
  ~InputGates();
  InputGates(InputGates&&) noexcept;

  const std::vector<GateParameter>& parameters() const;

  /// One run under the gates, with what training needs of it.
  struct Run {
    at::Tensor output;  ///< of the model's head
    at::Tensor logits;  ///< double [B, L, H]
    at::Tensor open;    ///< P(open) of each head, fixed ones included, double [B, L, H]
  };
  /// Runs an embedded state under gates that are drawn from `generator`, or under the deployed
  /// gates if that is undefined. Differentiable in the parameters, and in the model's where
  /// gradients are on; closed heads are computed, so that their gates get gradients.
  Run run(GatedModel& model, const ModelState& embedded, const at::Generator& generator) const;
  /// What training adds to the mean loss of a batch: the Lagrangian of the expected cost against
  /// the budget of `step`, and the penalty of W.
  at::Tensor penalty(const at::Tensor& open, int64_t step) const;
  /// Share of the cost that runs where heads are open with these probabilities, a scalar.
  at::Tensor cost_share(const at::Tensor& open) const;

  /// The gate of use, its threshold 0. Throws std::logic_error for the kind that it did not start
  /// from.
  LinearGate linear_gate() const;
  LayerGate layer_gate() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

/// Settings of `train_input_gates`.
struct TrainInputGatesOptions {
  InputGateSettings gates = {};
  int64_t steps = 0;                   ///< required: optimiser steps, one a batch
  double learning_rate = 0.05;         ///< of static logits and multipliers
  double weight_learning_rate = 0.03;  ///< of W
  double model_learning_rate = 0;      ///< of the model's weights, by AdamW; 0 = frozen, no dropout
  double max_norm = 1;                 ///< clips the gradient of gates, and of weights; 0 = no clip
  double settled_share = 0.005;        ///< as in LinearGateFit
  /// Measures what closed heads add under the trained gate, instead of keeping that of the start.
  bool compensate = false;
  int64_t draws = 2;              ///< samples of the gates behind `sampled_loss`
  uint64_t seed = 0;              ///< of the gates' noise
  GatedModel* teacher = nullptr;  ///< as in TrainGatesOptions
  Progress progress = {};         ///< steps done
};

/// What training came to. Losses are means over the calibration examples.
struct InputGateReport {
  std::vector<double> loss;        ///< by step, without the penalty
  std::vector<double> cost_share;  ///< by step: expected share of the cost
  double input_variance = 0;       ///< share of Var(z) within heads, that is: due to the input
  double mean_heads = 0;           ///< of the gate of use
  int64_t contested = 0;           ///< heads that some inputs open and others close
  double sampled_loss = 0;         ///< under gates as in training
  double hard_loss = 0;            ///< under the gate of use: hard_loss - sampled_loss = hardening
  /// Under the static mask of the heads that the gate opens most often, as many as it runs on
  /// average, rounded up; compensation of the gate.
  double static_loss = 0;
  /// Not empty where the gate became static: inputs explain less than 1 % of Var(z), or no head is
  /// contested. The mask is then the better choice.
  std::string warning;
};

/// A trained `LinearGate` and its report.
struct TrainedLinearGate {
  std::shared_ptr<LinearGate> gate;
  InputGateReport report;
};
/// A trained `LayerGate` and its report.
struct TrainedLayerGate {
  std::shared_ptr<LayerGate> gate;
  InputGateReport report;
};

/// Trains a gate end to end on the mean of `objective` over each batch (kl_to_dense distils the
/// dense model) plus `InputGates::penalty`; multipliers ascend. The threshold is then set on
/// `calibration` so that heads run at the budget on average, and settled heads are fixed.
///
/// Start from a static gate (`static_linear_gate`) or a fitted one. The gate's fixed heads stay as
/// they are. The model is frozen unless `model_learning_rate` > 0; what throws, `progress` too,
/// puts it back. Throws std::invalid_argument on options or data that do not fit,
/// std::runtime_error if a loss is not finite. Source: Louizos et al. 2018; budget after Xia,
/// Zhong, Chen 2022.
TrainedLinearGate train_input_gates(GatedModel& model, const LinearGate& start,
                                    const DataSource& train, const DataSource& calibration,
                                    const Objective& objective,
                                    const TrainInputGatesOptions& options);
TrainedLayerGate train_input_gates(GatedModel& model, const LayerGate& start,
                                   const DataSource& train, const DataSource& calibration,
                                   const Objective& objective,
                                   const TrainInputGatesOptions& options);

/// Gates with W = 0 that run the `heads` best of `scores` [L, H] (double) among those that are
/// there, for every input: a start for training. Logits are ranks; ties go to the lower head.
LinearGate static_linear_gate(GatedModel& model, const at::Tensor& scores, int64_t heads,
                              const at::Tensor& dropped_output = {});
LayerGate static_layer_gate(GatedModel& model, const at::Tensor& scores, int64_t heads,
                            const at::Tensor& dropped_output = {});

}  // namespace headkit
