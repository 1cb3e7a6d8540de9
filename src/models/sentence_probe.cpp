#include "headkit/models/sentence_probe.h"

#include <ATen/ATen.h>

#include "headkit/core/error.h"
#include "headkit/models/direct_paths.h"

namespace headkit {

at::Tensor sentence_embedding(const at::Tensor& hidden, const at::Tensor& attention_mask) {
  HEADKIT_CHECK(hidden.dim() == 3, "sentence_embedding",
                "hidden states of shape [batch, tokens, D]", "shape ", hidden.sizes());
  at::Tensor mean;
  if (attention_mask.defined()) {
    HEADKIT_CHECK(attention_mask.sizes() == hidden.sizes().slice(0, 2), "sentence_embedding",
                  "a mask of shape [batch, tokens]", "shape ", attention_mask.sizes(),
                  " for hidden states of shape ", hidden.sizes());
    const at::Tensor valid = attention_mask.to(hidden.dtype()).unsqueeze(2);
    mean = (hidden * valid).sum(1) / valid.sum(1).clamp_min(1e-9);
  } else {
    mean = hidden.mean(1);
  }
  return mean / mean.norm(2, {1}, true).clamp_min(1e-12);
}

namespace {

// Another head on a model; everything below it is the model's own.
class OtherHead : public GatedModel, public DirectPaths {
 public:
  explicit OtherHead(std::shared_ptr<GatedModel> model) : model_(std::move(model)) {
    HEADKIT_CHECK(model_ != nullptr, "sentence_probe", "a model", "none");
  }
  HeadLayout layout() const override { return model_->layout(); }
  HeadMask heads() const override { return model_->heads(); }
  ModelState embed(const Batch& batch) override { return model_->embed(batch); }
  ModelState run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                 Taps* taps) override {
    return model_->run(state, first, last, gates, taps);
  }
  ModelState select(const ModelState& state, const at::Tensor& index) override {
    return model_->select(state, index);
  }
  AttentionWeights attention(int64_t layer) override { return model_->attention(layer); }
  void replace_attention(int64_t layer, const AttentionWeights& weights,
                         const std::vector<int64_t>& kept) override {
    model_->replace_attention(layer, weights, kept);
  }
  GatedUnits gated_units() const override { return model_->gated_units(); }
  at::Tensor neurons() override { return model_->neurons(); }
  FeedForwardWeights feed_forward(int64_t layer) override { return model_->feed_forward(layer); }
  void replace_feed_forward(int64_t layer, const FeedForwardWeights& weights,
                            const std::vector<int64_t>& kept) override {
    model_->replace_feed_forward(layer, weights, kept);
  }
  Sublayers sublayers() override { return model_->sublayers(); }
  void set_sublayers(const Sublayers& open) override { model_->set_sublayers(open); }
  std::shared_ptr<void> evaluating() override { return model_->evaluating(); }
  std::shared_ptr<void> direct_paths() override {
    auto* const direct = dynamic_cast<DirectPaths*>(model_.get());
    return direct == nullptr ? nullptr : direct->direct_paths();
  }
  std::vector<std::pair<std::string, at::Tensor>> parameters() override {
    return model_->parameters();
  }

 private:
  std::shared_ptr<GatedModel> model_;
};

class SentenceEmbedding : public OtherHead {
 public:
  using OtherHead::OtherHead;
  at::Tensor head(const ModelState& state) override {
    return sentence_embedding(state.hidden, state.attention_mask);
  }
};

class SentenceProbe final : public SentenceEmbedding {
 public:
  SentenceProbe(std::shared_ptr<GatedModel> model, at::Tensor weight, at::Tensor bias)
      : SentenceEmbedding(std::move(model)), weight_(std::move(weight)), bias_(std::move(bias)) {
    HEADKIT_CHECK(weight_.defined() && weight_.dim() == 2 && weight_.size(1) == layout().model_dim,
                  "sentence_probe",
                  "a weight of shape [classes, " + std::to_string(layout().model_dim) + "]",
                  "shape ", weight_.defined() ? weight_.sizes() : at::IntArrayRef{});
    HEADKIT_CHECK(bias_.defined() && bias_.dim() == 1 && bias_.size(0) == weight_.size(0),
                  "sentence_probe", "a bias of shape [" + std::to_string(weight_.size(0)) + "]",
                  "shape ", bias_.defined() ? bias_.sizes() : at::IntArrayRef{});
  }
  at::Tensor head(const ModelState& state) override {
    const at::Tensor embedding = SentenceEmbedding::head(state);
    return at::linear(embedding, weight_.to(embedding.options()), bias_.to(embedding.options()));
  }

 private:
  at::Tensor weight_, bias_;
};

}  // namespace

std::shared_ptr<GatedModel> with_sentence_probe(std::shared_ptr<GatedModel> model,
                                                at::Tensor weight, at::Tensor bias) {
  return std::make_shared<SentenceProbe>(std::move(model), std::move(weight), std::move(bias));
}

std::shared_ptr<GatedModel> with_sentence_embedding(std::shared_ptr<GatedModel> model) {
  return std::make_shared<SentenceEmbedding>(std::move(model));
}

}  // namespace headkit
