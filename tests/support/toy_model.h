#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "headkit/models/direct_paths.h"
#include "headkit/models/gated_model.h"

namespace headkit::testing {

/// The model of golden.json's toy.model: residual attention layers without norm, mean over valid
/// tokens, linear classifier; with a residual feed-forward block (GELU) after each attention block
/// if the layout has neurons. A batch holds "x" [B, T, D], "attention_mask"
/// [B, T] (bool) and "labels" [B].
class ToyModel final : public GatedModel, public DirectPaths {
 public:
  ToyModel(HeadLayout layout, std::vector<AttentionWeights> layers, at::Tensor classifier,
           at::Tensor classifier_bias, std::vector<FeedForwardWeights> feed_forward = {});

  HeadLayout layout() const override { return layout_; }
  HeadMask heads() const override;
  ModelState embed(const Batch& batch) override;
  ModelState run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                 Taps* taps = nullptr) override;
  at::Tensor head(const ModelState& state) override;
  AttentionWeights attention(int64_t layer) override { return layers_.at(layer); }
  void replace_attention(int64_t layer, const AttentionWeights& weights,
                         const std::vector<int64_t>& kept) override;
  GatedUnits gated_units() const override;
  at::Tensor neurons() override;
  FeedForwardWeights feed_forward(int64_t layer) override { return feed_forward_.at(layer); }
  void replace_feed_forward(int64_t layer, const FeedForwardWeights& weights,
                            const std::vector<int64_t>& kept) override;
  Sublayers sublayers() override { return open_; }
  void set_sublayers(const Sublayers& open) override { open_ = open; }
  std::vector<std::pair<std::string, at::Tensor>> parameters() override;

  std::shared_ptr<void> direct_paths() override;

  /// Mean over the valid tokens of the last state, before the classifier, [B, D].
  at::Tensor pooled(const ModelState& state) const;

 private:
  at::Tensor attend(const ModelState& state, int64_t layer, const GateSet& gates, Taps* taps);
  at::Tensor feed(const at::Tensor& hidden, int64_t layer, const GateSet& gates, Taps* taps);

  HeadLayout layout_;
  std::vector<AttentionWeights> layers_;
  std::vector<FeedForwardWeights> feed_forward_;
  std::vector<std::vector<int64_t>> kept_, kept_neurons_;
  Sublayers open_;
  at::Tensor classifier_, classifier_bias_;
  std::weak_ptr<void> only_direct_;
};

/// Weights of toy.model, float64.
std::shared_ptr<ToyModel> golden_toy_model();
/// Its three examples, padded to four tokens.
Batch golden_toy_batch();
/// A toy model with random weights and biases, float64.
std::shared_ptr<ToyModel> random_toy_model(HeadLayout layout, int64_t classes, uint64_t seed);
/// Random examples of `tokens` tokens, of which a random number >= 1 is valid in each.
Batch random_toy_batch(const HeadLayout& layout, int64_t examples, int64_t tokens, int64_t classes,
                       uint64_t seed);

}  // namespace headkit::testing
