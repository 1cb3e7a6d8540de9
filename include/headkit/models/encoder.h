#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "headkit/models/direct_paths.h"
#include "headkit/models/encoder_config.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// What is left of an encoder that was pruned, in original indices. Empty members = all of it.
struct EncoderUnits {
  HeadMask heads = {};
  at::Tensor neurons = {};  ///< bool [L, F]
  Sublayers sublayers = {};
};

/// A Hugging Face encoder without Python: BERT, RoBERTa, XLM-RoBERTa, DistilBERT or ViT, with or
/// without a classifier. `load_encoder` makes one from a folder.
///
/// A batch holds "input_ids" [B, T] and may hold "attention_mask", "token_type_ids" and
/// "position_ids", each [B, T]; or "pixel_values" [B, channels, height, width]. Labels and example
/// ids may lie beside them.
///
/// Names, order, dtypes and shapes of `parameters()` are those of the class in transformers 5, and
/// so is `fingerprint()`: what was fitted to the model in Python fits it here. Heads, neurons,
/// whole blocks and, in the BERT line, dimensions of the residual stream have gates. There is no
/// dropout.
///
/// Parameters take gradients, as those of a torch module do: run under NoGradGuard or
/// c10::InferenceMode to keep no graph. Make the model outside of the latter: torch counts no
/// changes of weights that were made inside, so that they are packed anew at each call.
///
/// Runs of several threads may share an encoder; replacing weights may not go on beside a run.
class Encoder final : public GatedModel, public DirectPaths {
 public:
  /// `weights`: by names of transformers, of this or an older version, with or without those of
  /// other parts; float32, float64, bfloat16 or float16, all of one dtype, on one device. They are
  /// not copied. `units`: what is left, where the weights are of a pruned model, and
  /// `base_fingerprint` that of the whole one.
  /// Throws std::invalid_argument if a tensor is missing, or of another shape or dtype.
  Encoder(EncoderConfig config, const std::vector<std::pair<std::string, at::Tensor>>& weights,
          const EncoderUnits& units = {}, std::string base_fingerprint = "");
  ~Encoder() override;

  const EncoderConfig& config() const;
  /// `fingerprint()` of the model before anything was removed; "" while nothing is.
  std::string base_fingerprint();
  /// Says what a pruned model was before anything in it changed, where that was not its first cut.
  void remember_base(std::string fingerprint);

  HeadLayout layout() const override;
  HeadMask heads() const override;
  /// Throws std::invalid_argument on a batch with other tensors, more tokens than positions, or ids
  /// beyond their tables.
  ModelState embed(const Batch& batch) override;
  ModelState run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                 Taps* taps = nullptr) override;
  at::Tensor head(const ModelState& state) override;
  AttentionWeights attention(int64_t layer) override;
  void replace_attention(int64_t layer, const AttentionWeights& weights,
                         const std::vector<int64_t>& kept) override;
  GatedUnits gated_units() const override;
  at::Tensor neurons() override;
  FeedForwardWeights feed_forward(int64_t layer) override;
  void replace_feed_forward(int64_t layer, const FeedForwardWeights& weights,
                            const std::vector<int64_t>& kept) override;
  Sublayers sublayers() override;
  void set_sublayers(const Sublayers& open) override;
  std::vector<std::pair<std::string, at::Tensor>> parameters() override;
  std::shared_ptr<void> direct_paths() override;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace headkit
