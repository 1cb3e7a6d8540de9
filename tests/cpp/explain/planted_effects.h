#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "headkit/models/direct_paths.h"
#include "headkit/models/gated_model.h"
#include "support/toy_model.h"

namespace headkit::testing {

/// What a planted head writes, by feature: `to` += `scale` * mean over tokens of `from`.
struct PlantedWrite {
  int64_t layer = 0, head = 0;
  int64_t to = 0;
  double scale = 1;
  int64_t from = 0;   ///< feature 0 is 1 for every token
  double offset = 0;  ///< added to what is read, before `scale`
};

/// Attention that is uniform, no norm, no bias of the output: every effect is known by
/// construction. The output is [B, 2]: what `readout` makes of the mean features [B, D], and 0.
class PlantedEffects final : public GatedModel, public DirectPaths {
 public:
  using Readout = std::function<at::Tensor(const at::Tensor& features)>;

  PlantedEffects(int64_t layers, int64_t heads, int64_t features,
                 const std::vector<PlantedWrite>& writes, Readout readout)
      : readout_(std::move(readout)) {
    std::vector<AttentionWeights> weights;
    for (int64_t l = 0; l < layers; ++l) {
      AttentionWeights w;
      w.q = at::zeros({heads, features}, at::kDouble);
      w.k = at::zeros({heads, features}, at::kDouble);
      w.v = at::zeros({heads, features}, at::kDouble);
      w.o = at::zeros({features, heads}, at::kDouble);
      w.v_bias = at::zeros({heads}, at::kDouble);
      weights.push_back(w);
    }
    for (const PlantedWrite& each : writes) {
      AttentionWeights& w = weights[static_cast<size_t>(each.layer)];
      w.v[each.head][each.from] = 1;
      w.v_bias[each.head] = each.offset;
      w.o[each.to][each.head] = each.scale;
    }
    for (AttentionWeights& w : weights) {
      w.q_bias = at::zeros({heads}, at::kDouble);
      w.k_bias = at::zeros({heads}, at::kDouble);
      w.o_bias = at::zeros({features}, at::kDouble);
    }
    inner_ = std::make_shared<ToyModel>(HeadLayout{layers, heads, 1, features, 0},
                                        std::move(weights), at::zeros({2, features}, at::kDouble),
                                        at::zeros({2}, at::kDouble));
  }

  /// Examples of `tokens` tokens with feature 0 set and all others 0.
  Batch batch(int64_t examples = 1, int64_t tokens = 3) const {
    at::Tensor x = at::zeros({examples, tokens, inner_->layout().model_dim}, at::kDouble);
    x.select(2, 0).fill_(1);
    return {{"x", x}};
  }

  HeadLayout layout() const override { return inner_->layout(); }
  HeadMask heads() const override { return inner_->heads(); }
  ModelState embed(const Batch& batch) override { return inner_->embed(batch); }
  ModelState run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                 Taps* taps = nullptr) override {
    return inner_->run(state, first, last, gates, taps);
  }
  at::Tensor head(const ModelState& state) override {
    const at::Tensor m = readout_(inner_->pooled(state));
    return at::stack({m, at::zeros_like(m)}, 1);
  }
  AttentionWeights attention(int64_t layer) override { return inner_->attention(layer); }
  void replace_attention(int64_t layer, const AttentionWeights& weights,
                         const std::vector<int64_t>& kept) override {
    inner_->replace_attention(layer, weights, kept);
  }
  GatedUnits gated_units() const override { return inner_->gated_units(); }
  std::shared_ptr<void> direct_paths() override { return inner_->direct_paths(); }
  std::vector<std::pair<std::string, at::Tensor>> parameters() override {
    auto all = inner_->parameters();
    std::erase_if(all, [](const auto& each) { return each.first.starts_with("classifier"); });
    return all;
  }

 private:
  std::shared_ptr<ToyModel> inner_;
  Readout readout_;
};

}  // namespace headkit::testing
