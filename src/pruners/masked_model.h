#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "headkit/core/head_mask.h"
#include "headkit/models/gated_model.h"
#include "models/model_view.h"

namespace headkit {

/// A model with some of its heads closed for good, as if they were removed: scorers see only those
/// that are open. A closed head adds its row of `dropped_output` [L, H, D], where defined. Borrows
/// the model, whose weights it cannot change.
class MaskedModel final : public GatedModel, public ModelView {
 public:
  MaskedModel(GatedModel& model, const HeadMask& open, at::Tensor dropped_output = {});

  GatedModel& whole() override { return model_; }

  HeadLayout layout() const override { return model_.layout(); }
  HeadMask heads() const override { return open_; }
  ModelState embed(const Batch& batch) override { return model_.embed(batch); }
  ModelState run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                 Taps* taps = nullptr) override;
  at::Tensor head(const ModelState& state) override { return model_.head(state); }
  ModelState select(const ModelState& state, const at::Tensor& index) override {
    return model_.select(state, index);
  }
  AttentionWeights attention(int64_t layer) override;
  void replace_attention(int64_t layer, const AttentionWeights& weights,
                         const std::vector<int64_t>& kept) override;
  GatedUnits gated_units() const override { return model_.gated_units(); }
  at::Tensor neurons() override { return model_.neurons(); }
  FeedForwardWeights feed_forward(int64_t layer) override { return model_.feed_forward(layer); }
  Sublayers sublayers() override { return model_.sublayers(); }
  std::shared_ptr<void> evaluating() override { return model_.evaluating(); }
  std::vector<std::pair<std::string, at::Tensor>> parameters() override {
    return model_.parameters();
  }

 private:
  GatedModel& model_;
  HeadMask open_, there_;
  at::Tensor dropped_output_;  // 0 for open heads; undefined = nothing
};

}  // namespace headkit
