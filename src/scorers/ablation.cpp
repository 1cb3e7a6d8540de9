#include "headkit/scorers/ablation.h"

#include <ATen/ATen.h>

#include <random>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/ablation_sample.h"
#include "scorers/context_moments.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr char kName[] = "ablation";

// Mean outputs through W_O: [L, H, dh] -> [L, H, D].
at::Tensor through_output(GatedModel& model, const at::Tensor& contexts) {
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  at::Tensor outputs = at::zeros({layout.layers, layout.heads, layout.model_dim}, at::kDouble);
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    const std::vector<int64_t> heads = present.layer_heads(layer);
    if (heads.empty()) continue;
    const at::Tensor index = at::tensor(heads, at::kLong);
    const at::Tensor output = at::einsum(
        "hd,hed->he", {contexts[layer].index_select(0, index), output_slices(model, layer)});
    outputs[layer].index_copy_(0, index, output);
  }
  return outputs;
}

at::Tensor mean_contexts(const ContextMoments& parts) {
  const at::Tensor weight = parts.tokens.unsqueeze(2).unsqueeze(3);
  return (weight * parts.mean).sum(0) / weight.sum(0).clamp_min(1);
}

// For each example another one.
std::vector<int64_t> partners(int64_t examples, uint64_t seed) {
  HEADKIT_CHECK(examples > 1, kName, "at least two examples to resample from", examples);
  std::mt19937_64 random(seed);
  std::vector<int64_t> drawn;
  for (int64_t own = 0; own < examples; ++own) {
    const int64_t other = draw_below(random, examples - 1);
    drawn.push_back(other + (other >= own ? 1 : 0));
  }
  return drawn;
}

}  // namespace

HeadScores AblationScorer::score(GatedModel& model, const DataSource& data,
                                 const Objective& objective, const ScoreOptions& options) const {
  check_score_options(options);
  const std::string& replacement = options_.replacement;
  HEADKIT_CHECK(replacement == "zero" || replacement == "mean" || replacement == "resample", kName,
                "replacement zero, mean or resample", "'", replacement, "'");
  HEADKIT_CHECK(replacement == "zero" || !options.dropped_output.defined(), kName,
                "dropped_output with replacement zero only", "'", replacement, "'");
  AblationRun run{.dropped_output = options.dropped_output, .progress = options.progress};
  ContextMoments parts;
  std::vector<int64_t> other;
  if (replacement != "zero") {
    parts = context_moments(kName, model, data, {});
    if (replacement == "mean") {
      run.dropped_output = through_output(model, mean_contexts(parts));
    } else {
      other = partners(parts.mean.size(0), options.seed);
      run.dropped_of_example = [&](int64_t example) {
        return through_output(model, parts.mean[other[static_cast<size_t>(example)]]);
      };
    }
  }
  const AblationSample sample = ablation_sample(kName, model, data, objective, run);
  if (sample.deltas.all_zero()) fail_all_zero(kName, objective);
  HeadScores scores;
  scores.metric = kName;
  scores.objective = objective.name();
  scores.samples = sample.examples;
  sample.deltas.summarise(options, scores);
  Json settings = {{"normalization", options.normalization},
                   {"bootstrap", options.bootstrap},
                   {"replacement", replacement},
                   {"compensated", options.dropped_output.defined()}};
  if (sample.flips.defined()) settings["flips"] = flip_rows(sample.flips);
  scores.settings = settings.dump();
  return scores;
}

}  // namespace headkit
