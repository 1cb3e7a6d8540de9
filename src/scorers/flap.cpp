#include "headkit/scorers/flap.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/attention_rows.h"
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

// z-scores over the axes `dims`, of the places where `there` holds 1; 0 elsewhere. `count` of them.
at::Tensor standardised(const at::Tensor& values, const at::Tensor& there, const at::Tensor& count,
                        at::IntArrayRef dims) {
  const at::Tensor mean = (values * there).sum(dims, true) / count.clamp_min(1);
  const at::Tensor off = (values - mean) * there;
  const at::Tensor deviation = (off.square().sum(dims, true) / (count - 1).clamp_min(1)).sqrt();
  return off / at::where(deviation.gt(0), deviation, at::ones_like(deviation));
}

// Standardised over the channels of the heads that are there, then the mean of each head.
at::Tensor of_heads(at::Tensor channels, const at::Tensor& present, const FlapOptions& options) {
  if (options.square) channels = channels.square();
  if (options.standardize) {
    const at::Tensor count =
        (present.sum(-1) * static_cast<double>(channels.size(-1))).reshape({-1, 1, 1});
    channels = standardised(channels, present.unsqueeze(2), count, {-2, -1});
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

NeuronFluctuation neuron_fluctuation(GatedModel& model, const DataSource& data,
                                     const Progress& progress) {
  const at::Tensor present = model.neurons();
  NeuronFluctuation found;
  found.mean = at::zeros(present.sizes(), at::kDouble);
  at::Tensor deviations = at::zeros_like(found.mean);
  std::vector<double> tokens(static_cast<size_t>(present.size(0)), 0);
  for_each_run(
      kName, model, data, {.head_contexts = true, .neuron_activations = true}, progress,
      [&](const Batch&, const Taps& seen) -> Measured {
        HEADKIT_CHECK(seen.neurons.size() == tokens.size(), kName,
                      "the neurons of every feed-forward block", seen.neurons.size(), " of ",
                      tokens.size());
        const at::Tensor counts = at::zeros({present.size(0)}, at::kDouble);
        const at::Tensor means = at::zeros_like(found.mean), spreads = at::zeros_like(found.mean);
        for (size_t i = 0; i < tokens.size(); ++i) {
          const auto layer = static_cast<int64_t>(i);
          at::Tensor rows = seen.neurons[i].flatten(0, 1);
          if (const at::Tensor& valid = seen.valid[i]; valid.defined()) {
            rows = rows.index_select(0, valid.flatten().nonzero().flatten().to(rows.device()));
          }
          rows = rows.to(at::kCPU, at::kDouble);
          if (rows.size(0) == 0) continue;
          const at::Tensor index = present[layer].nonzero().flatten();
          const at::Tensor mean = rows.mean(0);
          counts[layer] = static_cast<double>(rows.size(0));
          means[layer].index_copy_(0, index, mean);
          spreads[layer].index_copy_(0, index, (rows - mean).square().sum(0));
        }
        return {counts, means, spreads};
      },
      [&](const Measured& measured) {
        for (size_t i = 0; i < tokens.size(); ++i) {
          const auto layer = static_cast<int64_t>(i);
          const double count = measured[0][layer].item<double>();
          if (count == 0) continue;
          const at::Tensor apart = measured[1][layer] - found.mean[layer];
          const double total = tokens[i] + count;
          found.mean[layer] += apart * (count / total);
          deviations[layer] += measured[2][layer] + apart.square() * (tokens[i] * count / total);
          tokens[i] = total;
        }
      });
  at::Tensor squares = at::zeros_like(found.mean);
  for (size_t i = 0; i < tokens.size(); ++i) {
    HEADKIT_CHECK(tokens[i] > 0, kName, "data with at least one token", "none");
    const auto layer = static_cast<int64_t>(i);
    deviations[layer] /= tokens[i];
    squares[layer].index_copy_(
        0, present[layer].nonzero().flatten(),
        model.feed_forward(layer).out.detach().to(at::kCPU, at::kDouble).square().sum(0));
  }
  found.variance = deviations;
  found.score = found.variance * squares;
  return found;
}

at::Tensor head_fluctuation(const at::Tensor& channels, const HeadMask& present,
                            const FlapOptions& options) {
  return of_heads(channels, present.keep().to(at::kDouble), options);
}

at::Tensor standardised_neurons(const at::Tensor& scores, const at::Tensor& present) {
  const at::Tensor there = present.to(at::kDouble);
  return standardised(scores, there, there.sum(-1, true), {-1});
}

HeadScores FlapScorer::score(GatedModel& model, const DataSource& data, const Objective&,
                             const ScoreOptions& options) const {
  check_score_options(options);
  const at::Tensor present = scored_heads(model);
  const at::Tensor columns = column_squares(model);
  const ContextMoments parts = context_moments(kName, model, data, options.progress);
  const int64_t examples = parts.tokens.size(0);
  const auto statistic = [&](const at::Tensor& counts) {
    return of_heads(merge(parts, counts).variance * columns, present, options_);
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
