#pragma once

#include <string>
#include <vector>

#include "headkit/gates/adjustable_policy.h"
#include "headkit/gates/gate_features.h"
#include "headkit/gates/linear_gate.h"

namespace headkit {

/// Everything that a `LayerGate` is made of.
struct LayerGateSettings {
  at::Tensor weight;         ///< W, double [L, H, D + S]: pooled state, then S scalars
  at::Tensor reference;      ///< mu, double [L, D + S]: mean features of the calibration inputs
  at::Tensor static_logits;  ///< s, double [L, H]: what the gate says of the average input
  /// Scalars beside the pooled state (gate_features.h), the same for all layers.
  std::vector<std::string> features = {};
  /// One for each layer, reading the state before it, where a scalar needs one; else empty.
  std::vector<LinearProbe> probes = {};
  /// int8 [L, H]: 0 = decided for each input, 1 = always on, -1 = pruned. Undefined = all 0.
  at::Tensor fixed = {};
  double threshold = 0;            ///< a head runs if its logit >= threshold
  int64_t min_heads = 0;           ///< every sample runs so many heads of EACH layer, >= 0
  at::Tensor dropped_output = {};  ///< [L, H, D] or undefined
  std::string calibration = {};    ///< free text: what set the threshold
};

/// A linear gate for each layer, decided from the state before it: z_l = W_l (f_l - mu_l) + s_l
/// with f the mean state over valid tokens and scalars beside it, head on where z >= threshold.
/// With W = 0 it is static pruning by s.
///
/// z is computed in double in a fixed order over the sample's own tokens, so a decision is a
/// function of the sample's own states. Because z is linear in f, each logit is exactly a base
/// value plus one part a token and one a scalar (decision_record.h). Cost a layer: T*D additions, a
/// product [H, D + S], and the probe's.
class LayerGate final : public AdjustablePolicy {
 public:
  /// Throws std::invalid_argument on shapes or values that do not fit together.
  explicit LayerGate(LayerGateSettings settings);
  std::string name() const override { return "layer_gate"; }
  std::unique_ptr<State> start() const override;
  /// 0 and every layer with a head that is decided for each input.
  std::vector<int64_t> decision_layers() const override { return decision_layers_; }
  /// Decides the heads of `input.layer`, and of the layers after it up to the next decision.
  GateSet decide(const GateInput& input, State& state) const override;
  /// Lambda sets the threshold, as that of LinearGate.
  std::shared_ptr<GatePolicy> at(double lambda) const override;
  std::string to_json() const override;
  static std::shared_ptr<LayerGate> from_json(const std::string& text);

  const LayerGateSettings& settings() const { return settings_; }
  /// z of one layer, double [B, H], CPU, from the state before it.
  at::Tensor logits(int64_t layer, const at::Tensor& hidden,
                    const at::Tensor& attention_mask) const;
  /// 0/1, double [B, L, H], of logits of that shape: threshold, fixed heads and floors.
  at::Tensor open_heads(const at::Tensor& logits) const;
  LayerGate with_dropped_output(at::Tensor dropped_output) const;
  LayerGate with_threshold(double threshold) const;

 private:
  const LinearProbe* probe(int64_t layer) const;

  LayerGateSettings settings_;
  std::vector<at::Tensor> weight_by_feature_;  // L times [D + S, H]
  std::vector<int64_t> decision_layers_;
};

/// Runs `data` under `gate` and returns its logits, double [N, L, H]. Layers without a decision
/// count with their static logits.
at::Tensor layer_gate_logits(GatedModel& model, const DataSource& data, const LayerGate& gate);

/// The same gate with the threshold at which the examples of `calibration` run `mean_heads` heads
/// on average. A threshold shifts what later layers see, so it is set on logits taken under the
/// gate itself, a few times over: the largest mean found that does not exceed the one asked for.
LayerGate with_mean_heads(GatedModel& model, const DataSource& calibration, const LayerGate& gate,
                          double mean_heads);

/// What `fit_layer_gate` returns.
struct FittedLayerGate {
  std::shared_ptr<LayerGate> gate;
  LinearGateReport report;  ///< `ridge` and `explained`: mean over layers with a finite ridge
};

/// Fits W of each layer on `train` and one threshold on `calibration` (other examples), as
/// `fit_linear_gate` does (the floor is that of a layer), with features before each layer of the
/// dense model; probes, where a feature needs them, are fitted to `train` first. The threshold is
/// that of `with_mean_heads`. Cost: one forward and one backward over `train` (one forward more
/// with probes), a few forwards over `calibration`.
FittedLayerGate fit_layer_gate(GatedModel& model, const DataSource& train,
                               const DataSource& calibration, const Objective& objective,
                               const LinearGateFit& options);

}  // namespace headkit
