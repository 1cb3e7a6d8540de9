#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "headkit/core/gate_set.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// Everything that a `LinearProbe` is made of.
struct LinearProbeSettings {
  int64_t layer = 0;       ///< reads the state before this layer
  at::Tensor reference;    ///< mu, double [D]
  at::Tensor weight;       ///< double [C, D], C >= 1 classes; undefined = no task
  at::Tensor bias;         ///< double [C]
  at::Tensor loss_weight;  ///< double [D]; undefined = no loss is predicted
  double loss_bias = 0;    ///< the log loss of the mean input
};

/// What a probe says of each sample, double [B], CPU. Undefined where the probe has no task or no
/// loss.
struct ProbeSignals {
  at::Tensor margin;      ///< best minus second logit; absolute value of a single logit
  at::Tensor confidence;  ///< tanh(margin / 2): for two classes the difference of probabilities
  at::Tensor entropy;     ///< of the class distribution (a single logit: of its sigmoid), in nats
  at::Tensor log_loss;    ///< logarithm of the predicted loss
};

/// A linear model of the task on the pooled state u before a layer: logits = W (u - mu) + b, and a
/// prediction of the log loss that the whole model will have.
///
/// Computed in double in a fixed order over the sample's own tokens (pooled_state.h): a signal
/// depends on the sample alone. A sample without tokens counts as the mean input. Cost: T * D
/// additions and C + 1 products of length D a sample.
class LinearProbe {
 public:
  /// Throws std::invalid_argument on shapes or values that do not fit together.
  explicit LinearProbe(LinearProbeSettings settings);
  const LinearProbeSettings& settings() const { return settings_; }
  int64_t layer() const { return settings_.layer; }
  int64_t model_dim() const { return settings_.reference.size(0); }
  bool has_task() const { return settings_.weight.defined(); }
  bool predicts_loss() const { return settings_.loss_weight.defined(); }

  /// Double [B, C] from hidden [B, T, D] and bool mask [B, T] (may be undefined); needs a task.
  at::Tensor logits(const at::Tensor& hidden, const at::Tensor& attention_mask) const;
  ProbeSignals signals(const at::Tensor& hidden, const at::Tensor& attention_mask) const;
  /// The same from states that `pooled_state` gave, double [B, D].
  ProbeSignals signals_of(const at::Tensor& pooled) const;

  std::string to_json() const;  ///< everything that `from_json` needs, bit for bit
  static LinearProbe from_json(const std::string& text);

 private:
  LinearProbeSettings settings_;
  at::Tensor weight_by_feature_;       // [D, C]
  at::Tensor loss_weight_by_feature_;  // [D, 1]
};

/// Settings of the fit of one probe.
struct LinearProbeFit {
  /// L2 penalty of the class weights relative to the mean feature variance; < 0 = the one with the
  /// least loss on every fifth example, which is fitted on the others.
  double ridge = -1;
  double loss_ridge = -1;  ///< penalty of the predicted loss; < 0 = by GCV
  double huber = 1.345;    ///< robust fit of the log loss; 0 = squares
};

/// A probe, and how the fit went.
struct FittedProbe {
  LinearProbe probe;
  int64_t examples = 0;
  double ridge = 0;           ///< taken for the classes; infinity = they are constant
  double accuracy = 0;        ///< on the held-out fifth; NaN without a task or hold-out
  double loss_explained = 0;  ///< share of the variance of the log loss, by GCV
};

/// Fits a probe to pooled states [N, D] (double), by multinomial logistic regression on `labels`
/// (int64 [N], from 0; undefined = no task) and ridge regression on log(loss + eps) of `losses`
/// (double [N], >= 0; undefined = none), eps = 1 % of the mean loss. `classes` = 0 counts them from
/// the labels; labels of one class give constant logits. Throws std::invalid_argument for no
/// examples, neither target, or values that do not fit. Source: Alain, Bengio 2017 (probes); Yoo,
/// Kweon 2019 (predicted loss).
FittedProbe fit_linear_probe(int64_t layer, const at::Tensor& features, const at::Tensor& labels,
                             const at::Tensor& losses, int64_t classes = 0,
                             const LinearProbeFit& options = {});

/// Settings of `fit_linear_probes`.
struct LinearProbesFit {
  std::vector<int64_t> layers = {};  ///< required: which states, ascending, each in [0, L)
  bool task = true;                  ///< false = only the loss is predicted
  /// false = the class that the dense model says of an example (for outputs [B, C]), true =
  /// batch["labels"] [B].
  bool labels_of_data = false;
  /// Loss to predict, of the model under `gates`; null = none.
  const Objective* objective = nullptr;
  GateSet gates = {};  ///< [L, H] gates under which states and losses are taken; empty = dense
  LinearProbeFit fit = {};
  Progress progress = {};  ///< batches done
};

/// Runs the model once over `data` (twice where gates are set and dense outputs needed) and fits a
/// probe for each layer. Outputs [B, 1] are one logit: their class is its sign.
std::vector<FittedProbe> fit_linear_probes(GatedModel& model, const DataSource& data,
                                           const LinearProbesFit& options);

}  // namespace headkit
