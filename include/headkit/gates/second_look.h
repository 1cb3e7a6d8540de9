#pragma once

#include <memory>
#include <string>
#include <vector>

#include "headkit/gates/adjustable_policy.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// Everything that a `SecondLook` is made of.
struct SecondLookSettings {
  std::shared_ptr<const AdjustablePolicy> gate;  ///< a LinearGate or a LayerGate
  double band = 0;  ///< heads with |logit - threshold| < band are looked at again, >= 0
  /// One of them runs where its estimate is >= `ratio` times the layer's `median`; >= 0.
  double ratio = 1;
  at::Tensor weight;  ///< double [L, H]: ||Wv_h||_2 * ||Wo_h||_F
  at::Tensor median;  ///< double [L], > 0: of the estimates of a layer's heads in calibration
};

/// A second chance for heads near the threshold of a linear gate: an estimate of what the head
/// would do to this input, from whole-number scores of its own queries and keys, decides instead of
/// the gate.
///
/// The estimate is theta / sqrt(T) with theta = ||S'||_F * ||X - mean x||_F * ||Wv_h||_2 *
/// ||Wo_h||_F / T: ||S'||_F by `integer_score_norm` from Q and K of the head, X the input of the
/// layer over the T valid tokens. To first order in the scores theta bounds how far the head's
/// outputs are from the one that attends alike to all tokens (||V - mean v|| <= ||Wv_h||_2 ||X -
/// mean x||, so V is not projected); the root of T makes it a length of one token. Estimates are
/// compared with the median of their layer, never with an absolute number.
///
/// Heads that the gate has to run for its floor, and those that it does not decide, are left alone.
/// Everything is computed in double in a fixed order from the sample's own tokens. Cost, told in
/// `PolicyRun::decision_flops`: of each head looked at its Q and K, 4 T D dh, and the scores; a
/// head that then runs projects them again, which nothing here saves.
///
/// For encoders whose attention reads the state before the layer as it is (norm behind the blocks)
/// through plain Q and K: `fit_second_look` checks that. Source: Jaradat 2024 (HDP), corrected:
/// int8, centred, weighed by values, threshold relative to the layer.
class SecondLook final : public AdjustablePolicy {
 public:
  /// Throws std::invalid_argument on settings that do not fit together.
  explicit SecondLook(SecondLookSettings settings);
  std::string name() const override { return "second_look"; }
  void check_model(GatedModel& model) const override { settings_.gate->check_model(model); }
  std::unique_ptr<State> start() const override;
  /// 0 and every layer with a head that the gate decides for each input.
  std::vector<int64_t> decision_layers() const override { return decision_layers_; }
  /// Needs `input.model`, and for layers beyond the first the state of the layers before.
  GateSet decide(const GateInput& input, State& state) const override;
  /// The lambda of the gate; band and ratio stay.
  std::shared_ptr<GatePolicy> at(double lambda) const override;
  std::string to_json() const override;
  static std::shared_ptr<SecondLook> from_json(const std::string& text);

  const SecondLookSettings& settings() const { return settings_; }
  /// theta / sqrt(T) of some heads of a layer, double [B, heads.size()], from the state before it;
  /// 0 for a sample without valid tokens.
  at::Tensor estimates(GatedModel& model, int64_t layer, const std::vector<int64_t>& heads,
                       const at::Tensor& hidden, const at::Tensor& attention_mask) const;

 private:
  SecondLookSettings settings_;
  std::vector<int64_t> decision_layers_;
};

/// Settings of `fit_second_look`.
struct SecondLookFit {
  double band_share = 0.2;  ///< of the decisions on contested heads, nearest to the threshold
  Progress progress{};      ///< batches done
};

/// Puts a second look on a gate. `weight` comes from the model, `median` and `band` from the runs
/// of `data` under the gate; `ratio` is the one at which as many of the heads in the band run as
/// the gate itself would open. Unlabelled data. Throws std::invalid_argument for a gate of another
/// kind, a model whose attention is not as above, and options or data that do not fit.
std::shared_ptr<SecondLook> fit_second_look(GatedModel& model, const DataSource& data,
                                            std::shared_ptr<const AdjustablePolicy> gate,
                                            const SecondLookFit& options = {});

}  // namespace headkit
