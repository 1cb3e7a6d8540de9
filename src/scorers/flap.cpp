#include "headkit/scorers/flap.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/context_moments.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "flap";

// Squared norms of the columns of W_O, [L, H, dh]; 0 for heads that are gone.
at::Tensor column_squares(GatedModel& model) {
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  at::Tensor squares = at::zeros({layout.layers, layout.heads, layout.head_dim}, at::kDouble);
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    const std::vector<int64_t> heads = present.layer_heads(layer);
    if (heads.empty()) continue;
    squares[layer].index_copy_(0, at::tensor(heads, at::kLong),
                               output_slices(model, layer).square().sum(1));
  }
  return squares;
}

struct Moments {
  at::Tensor mean, variance;  // [rows, L, H, dh]
};

// Of the tokens of all examples, example i taken counts[.., i] times. Merged around the mean over
// all: the squares of large means would cancel.
Moments merge(const ContextMoments& parts, const at::Tensor& counts) {
  const int64_t examples = parts.tokens.size(0), layers = parts.tokens.size(1);
  const at::Tensor weight = parts.tokens.reshape({examples, layers, 1, 1});
  const auto summed = [&](const at::Tensor& values) {
    return at::mm(counts, values.reshape({examples, -1}))
        .reshape({counts.size(0), layers, values.size(2), values.size(3)});
  };
  const at::Tensor center = (weight * parts.mean).sum(0, true) / weight.sum(0, true).clamp_min(1);
  const at::Tensor shift = parts.mean - center;
  const at::Tensor total = summed(weight).clamp_min(1);
  const at::Tensor mean = summed(weight * shift) / total;
  const at::Tensor spread = summed(parts.deviations + weight * shift.square()) / total;
  return {center + mean, (spread - mean.square()).clamp_min(0)};
}

// Standardised over the channels of the heads that are there, then the mean of each head.
at::Tensor head_fluctuation(at::Tensor channels, const at::Tensor& present,
                            const FlapOptions& options) {
  if (options.square) channels = channels.square();
  const at::Tensor there = present.unsqueeze(2);  // [L, H, 1]
  if (options.standardize) {
    const auto dims = std::vector<int64_t>{-2, -1};
    const at::Tensor count =
        (present.sum(-1) * static_cast<double>(channels.size(-1))).reshape({-1, 1, 1});
    const at::Tensor mean = (channels * there).sum(dims, true) / count.clamp_min(1);
    const at::Tensor off = (channels - mean) * there;
    const at::Tensor deviation = (off.square().sum(dims, true) / (count - 1).clamp_min(1)).sqrt();
    channels = off / at::where(deviation.gt(0), deviation, at::ones_like(deviation));
  }
  return channels.mean(-1) * present;
}

}  // namespace

ChannelFluctuation channel_fluctuation(GatedModel& model, const DataSource& data,
                                       const Progress& progress) {
  const ContextMoments parts = context_moments(kName, model, data, progress);
  const Moments all = merge(parts, at::ones({1, parts.tokens.size(0)}, at::kDouble));
  return {all.mean[0], all.variance[0], all.variance[0] * column_squares(model)};
}

HeadScores FlapScorer::score(GatedModel& model, const DataSource& data, const Objective&,
                             const ScoreOptions& options) const {
  check_score_options(options);
  const at::Tensor present = scored_heads(model);
  const at::Tensor columns = column_squares(model);
  const ContextMoments parts = context_moments(kName, model, data, options.progress);
  const int64_t examples = parts.tokens.size(0);
  const auto statistic = [&](const at::Tensor& counts) {
    return head_fluctuation(merge(parts, counts).variance * columns, present, options_);
  };
  HeadScores scores;
  scores.metric = kName;
  scores.samples = examples;
  summarise_scores(options, statistic(at::ones({1, examples}, at::kDouble))[0], examples, statistic,
                   scores);
  scores.settings = Json{
      {"normalization", options.normalization},
      {"bootstrap", options.bootstrap},
      {"standardize", options_.standardize},
      {"square",
       options_.square}}.dump();
  return scores;
}

}  // namespace headkit
