#include "headkit/pruners/hies_tuning.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "headkit/core/error.h"
#include "headkit/models/data_hash.h"
#include "headkit/scorers/hies.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "tune_hies";

std::vector<double> alphas_of(const HiesTuningOptions& options) {
  std::vector<double> alphas = options.alphas;
  for (int step = 0; options.alphas.empty() && step <= 10; ++step) alphas.push_back(step / 10.0);
  for (const double alpha : alphas) {
    HEADKIT_CHECK(alpha >= 0 && alpha <= 1, kName, "alphas in [0, 1]", alpha);
  }
  std::sort(alphas.begin(), alphas.end());
  alphas.erase(std::unique(alphas.begin(), alphas.end()), alphas.end());
  return alphas;
}

double mean_loss(GatedModel& model, const DataSource& data, const Objective& objective,
                 const GateSet& gates) {
  double sum = 0;
  int64_t examples = 0;
  data.for_each([&](const Batch& batch) {
    const int64_t size = batch_size(batch);
    if (size == 0) return;
    const at::Tensor dense = objective.needs_dense() ? model(batch) : at::Tensor();
    sum += checked_losses(kName, objective.loss(model(batch, gates), batch, dense), size)
               .sum()
               .item<double>();
    examples += size;
  });
  HEADKIT_CHECK(examples > 0, kName, "validation data with at least one example", "none");
  return sum / static_cast<double>(examples);
}

}  // namespace

HiesTuning tune_hies(GatedModel& model, const DataSource& data, const DataSource& validation,
                     const Objective& objective, const HiesTuningOptions& options) {
  HiesTuning tuning;
  tuning.alphas = alphas_of(options);
  const int64_t shared = shared_examples(validation, data);
  HEADKIT_CHECK(shared == 0, kName, "validation data apart from the data that heads are scored on",
                shared, " examples that are in both");
  tuning.data_hash = data_hash(data);
  tuning.validation_hash = data_hash(validation);

  // The score is linear in alpha: its ends give all of it.
  ScoreOptions plain = options.score;
  plain.bootstrap = 0;
  plain.normalization = "none";
  plain.progress = {};
  const auto at_end = [&](double alpha) {
    return HiesScorer({.alpha = alpha}).score(model, data, objective, plain);
  };
  const at::Tensor entropy = at_end(0).values;
  HeadScores scores = at_end(1);
  const at::Tensor gradient = scores.values;

  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  TopFractionOptions share = options.share;
  share.candidates = model.heads();
  for (const double alpha : tuning.alphas) {
    scores.values = alpha * gradient + (1 - alpha) * entropy;
    if (options.score.normalization == "layer_l2") scores.values = normalise_layers(scores.values);
    const HeadMask mask = prune_top_fraction(scores, share);
    const auto seen = std::find(tuning.masks.begin(), tuning.masks.end(), mask);
    if (seen != tuning.masks.end()) {
      tuning.losses.push_back(tuning.losses[seen - tuning.masks.begin()]);
    } else {
      GateSet gates = GateSet::from_mask(mask);
      gates.dropped_output = options.score.dropped_output;
      tuning.losses.push_back(mean_loss(model, validation, objective, gates));
    }
    tuning.masks.push_back(mask);
    if (options.score.progress) {
      options.score.progress(static_cast<int64_t>(tuning.masks.size()),
                             static_cast<int64_t>(tuning.alphas.size()));
    }
  }
  const auto least = std::min_element(tuning.losses.rbegin(), tuning.losses.rend());
  tuning.alpha = tuning.alphas[tuning.losses.rend() - least - 1];
  return tuning;
}

}  // namespace headkit
