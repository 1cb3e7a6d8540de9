#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "headkit/attention/reference.h"
#include "headkit/core/error.h"
#include "headkit/models/gated_model.h"

namespace headkit::testing {

/// Sizes of a planted model. The residual stream is made of orthogonal blocks: the token and the
/// position, one-hot; a cue, as the batch gives it; and room that heads write to.
struct PlantedSizes {
  int64_t vocabulary = 16;
  int64_t positions = 32;
  int64_t cue = 0;
  int64_t written = 16;

  int64_t token() const { return 0; }
  int64_t position() const { return vocabulary; }
  int64_t cue_block() const { return vocabulary + positions; }
  int64_t room() const { return cue_block() + cue; }
  int64_t width() const { return room() + written; }
  int64_t head_dim() const { return vocabulary + positions + 4; }
};

/// The score that puts 1 - epsilon on a single key of `keys`, the others at 0.
inline double planted_scale(int64_t keys, double epsilon = 0.01) {
  return std::log((static_cast<double>(keys) - 1) * (1 - epsilon) / epsilon);
}

/// One head, by its maps: scores are (W_Q x + b_Q) . (W_K x), without a factor. All zero: it looks
/// at all keys alike and writes nothing.
struct PlantedHead {
  explicit PlantedHead(const PlantedSizes& sizes)
      : q(zeros(sizes.head_dim(), sizes.width())),
        k(zeros(sizes.head_dim(), sizes.width())),
        v(zeros(sizes.head_dim(), sizes.width())),
        o(zeros(sizes.width(), sizes.head_dim())),
        q_bias(zeros(1, sizes.head_dim())[0]) {}
  static at::Tensor zeros(int64_t rows, int64_t columns) {
    return at::zeros({rows, columns}, at::kDouble);
  }
  at::Tensor q, k, v, o;  ///< [dh, D], [dh, D], [dh, D], [D, dh]
  at::Tensor q_bias;      ///< [dh]

  /// Writes what it reads of `count` dimensions from `from` on to those from `to` on.
  PlantedHead& writing(int64_t from, int64_t to, int64_t count, double factor = 1) {
    for (int64_t i = 0; i < count; ++i) {
      v[i][from + i] = 1;
      o[to + i][i] = factor;
    }
    return *this;
  }
  /// Adds `bonus` to the score of every key that has 1 at this dimension.
  PlantedHead& preferring(int64_t dimension, double bonus) {
    const int64_t last = q.size(0) - 1;
    q_bias[last] = 1;
    k[last][dimension] = bonus;
    return *this;
  }
};

/// Looks from position i at i + offset; at all keys alike where that is outside.
inline PlantedHead planted_offset(const PlantedSizes& sizes, int64_t offset, double scale) {
  PlantedHead head(sizes);
  for (int64_t i = 0; i < sizes.positions; ++i) {
    const int64_t key = i + offset;
    if (key < 0 || key >= sizes.positions) continue;
    head.q[key][sizes.position() + i] = scale;
    head.k[key][sizes.position() + key] = 1;
  }
  return head;
}

/// Looks at copies of its own token, not at itself.
inline PlantedHead planted_duplicate(const PlantedSizes& sizes, double scale) {
  PlantedHead head(sizes);
  for (int64_t i = 0; i < sizes.vocabulary; ++i) {
    head.q[i][sizes.token() + i] = scale;
    head.k[i][sizes.token() + i] = 1;
  }
  for (int64_t i = 0; i < sizes.positions; ++i) {
    head.q[sizes.vocabulary + i][sizes.position() + i] = -3 * scale;
    head.k[sizes.vocabulary + i][sizes.position() + i] = 1;
  }
  return head;
}

/// Looks at the token after a copy of its own: `previous` is where a head of an earlier layer has
/// written the token before.
inline PlantedHead planted_induction(const PlantedSizes& sizes, int64_t previous, double scale) {
  PlantedHead head(sizes);
  for (int64_t i = 0; i < sizes.vocabulary; ++i) {
    head.q[i][sizes.token() + i] = scale;
    head.k[i][previous + i] = 1;
  }
  return head;
}

/// Score -(i - j)^2 / (2 sigma^2), but for a constant of the row.
inline PlantedHead planted_local(const PlantedSizes& sizes, double sigma) {
  PlantedHead head(sizes);
  for (int64_t i = 0; i < sizes.positions; ++i) {
    const auto place = static_cast<double>(i);
    head.q[0][sizes.position() + i] = place / (sigma * sigma);
    head.k[0][sizes.position() + i] = place;
    head.k[1][sizes.position() + i] = -place * place / (2 * sigma * sigma);
  }
  head.q_bias[1] = 1;
  return head;
}

/// Small random scores: near uniform, no role.
inline PlantedHead planted_noise(const PlantedSizes& sizes, double scale, uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  PlantedHead head(sizes);
  head.q = at::randn(head.q.sizes(), generator, at::kDouble) * scale;
  head.k = at::randn(head.k.sizes(), generator, at::kDouble) * scale;
  return head;
}

/// Residual attention without norms, of heads that are written by hand. A batch holds "input_ids"
/// [B, T], and may hold "attention_mask" [B, T] and "cue" [B, T, cue].
class PlantedAttention final : public GatedModel {
 public:
  /// Layers with as many heads each; `readout` makes the output of the last state, by default its
  /// mean over the tokens.
  PlantedAttention(PlantedSizes sizes, const std::vector<std::vector<PlantedHead>>& layers,
                   bool causal = false,
                   std::function<at::Tensor(const ModelState&)> readout = nullptr)
      : sizes_(sizes), causal_(causal), readout_(std::move(readout)) {
    layout_ = {static_cast<int64_t>(layers.size()), static_cast<int64_t>(layers.front().size()),
               sizes.head_dim(), sizes.width(), 0};
    for (const std::vector<PlantedHead>& heads : layers) {
      std::vector<at::Tensor> q, k, v, o, bias;
      for (const PlantedHead& head : heads) {
        q.push_back(head.q);
        k.push_back(head.k);
        v.push_back(head.v);
        o.push_back(head.o);
        bias.push_back(head.q_bias);
      }
      AttentionWeights weights;
      weights.q = at::cat(q);
      weights.k = at::cat(k);
      weights.v = at::cat(v);
      weights.o = at::cat(o, 1);
      weights.q_bias = at::cat(bias);
      layers_.push_back(std::move(weights));
      kept_.emplace_back(heads.size());
      std::iota(kept_.back().begin(), kept_.back().end(), 0);
    }
  }

  HeadLayout layout() const override { return layout_; }
  HeadMask heads() const override {
    at::Tensor keep = at::zeros({layout_.layers, layout_.heads}, at::kBool);
    for (int64_t l = 0; l < layout_.layers; ++l) {
      for (const int64_t head : kept_[static_cast<size_t>(l)]) keep[l][head] = true;
    }
    return HeadMask(keep);
  }

  ModelState embed(const Batch& batch) override {
    const at::Tensor& ids = batch.at("input_ids");
    ModelState state;
    state.hidden = at::zeros({ids.size(0), ids.size(1), sizes_.width()}, at::kDouble);
    state.hidden.slice(2, 0, sizes_.vocabulary).scatter_(2, ids.unsqueeze(2), 1);
    const at::Tensor places = at::eye(sizes_.positions, at::kDouble).slice(0, 0, ids.size(1));
    state.hidden.slice(2, sizes_.position(), sizes_.cue_block()).copy_(places);
    if (batch.count("cue") > 0) {
      state.hidden.slice(2, sizes_.cue_block(), sizes_.room()).copy_(batch.at("cue"));
    }
    if (batch.count("attention_mask") > 0) {
      state.attention_mask = batch.at("attention_mask").to(at::kBool);
    }
    state.batch = batch;
    return state;
  }

  ModelState run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                 Taps* taps = nullptr) override {
    HEADKIT_CHECK(state.layer == first && first <= last && last <= layout_.layers, "run",
                  "layers from " + std::to_string(state.layer), first, " to ", last);
    ModelState next = state;
    for (int64_t l = first; l < last; ++l) next.hidden = next.hidden + attend(next, l, gates, taps);
    next.layer = last;
    return next;
  }

  at::Tensor head(const ModelState& state) override {
    if (readout_) return readout_(state);
    if (!state.attention_mask.defined()) return state.hidden.mean(1);
    const at::Tensor valid = state.attention_mask.to(at::kDouble).unsqueeze(2);
    return (state.hidden * valid).sum(1) / valid.sum(1);
  }

  AttentionWeights attention(int64_t layer) override {
    return layers_.at(static_cast<size_t>(layer));
  }
  void replace_attention(int64_t layer, const AttentionWeights& weights,
                         const std::vector<int64_t>& kept) override {
    layers_.at(static_cast<size_t>(layer)) = weights;
    kept_.at(static_cast<size_t>(layer)) = kept;
  }
  std::vector<std::pair<std::string, at::Tensor>> parameters() override {
    std::vector<std::pair<std::string, at::Tensor>> all;
    for (size_t l = 0; l < layers_.size(); ++l) {
      const std::string prefix = "layers." + std::to_string(l) + ".";
      all.insert(all.end(), {{prefix + "q", layers_[l].q},
                             {prefix + "k", layers_[l].k},
                             {prefix + "v", layers_[l].v},
                             {prefix + "o", layers_[l].o},
                             {prefix + "q_bias", layers_[l].q_bias}});
    }
    return all;
  }

 private:
  at::Tensor attend(const ModelState& state, int64_t l, const GateSet& gates, Taps* taps) {
    const at::Tensor& x = state.hidden;
    const AttentionWeights& weights = layers_[static_cast<size_t>(l)];
    const std::vector<int64_t>& kept = kept_[static_cast<size_t>(l)];
    const auto heads = static_cast<int64_t>(kept.size());
    AttentionInput input;
    input.scale(1).is_causal(causal_);
    if (state.attention_mask.defined()) input.key_padding_mask(state.attention_mask);
    if (taps != nullptr && taps->attention_inputs) taps->attention_input.push_back(x);
    if (taps != nullptr && taps->head_contexts) {
      taps->head_context.push_back(head_contexts(x, weights, heads, input));
    }
    if (taps != nullptr && (taps->head_contexts || taps->attention_calls)) {
      taps->valid.push_back(state.attention_mask);
    }
    if (const at::Tensor gate = gates.layer_gate(l); gate.defined()) {
      input.gate(gate.to(at::kDouble).index_select(-1, at::tensor(kept, at::kLong)))
          .skip(gates.skip);
      if (const at::Tensor dropped = gates.layer_dropped_output(l); dropped.defined()) {
        input.dropped_output(dropped.index_select(0, at::tensor(kept, at::kLong)));
      }
    }
    if (taps != nullptr && taps->attention_calls) {
      taps->attention_call.push_back({x, weights, heads, input});
    }
    const at::Tensor added = gated_attention(x, weights, heads, input);
    if (taps != nullptr && taps->attention_outputs) taps->attention_output.push_back(added);
    return added;
  }

  PlantedSizes sizes_;
  HeadLayout layout_;
  bool causal_;
  std::function<at::Tensor(const ModelState&)> readout_;
  std::vector<AttentionWeights> layers_;
  std::vector<std::vector<int64_t>> kept_;
};

}  // namespace headkit::testing
