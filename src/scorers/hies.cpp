#include "headkit/scorers/hies.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/entropy_sample.h"
#include "scorers/gate_slopes.h"

namespace headkit {
namespace {

constexpr char kName[] = "hies";

}  // namespace

HeadScores HiesScorer::score(GatedModel& model, const DataSource& data, const Objective& objective,
                             const ScoreOptions& options) const {
  check_score_options(options);
  check_slope_exists(kName, objective);
  HEADKIT_CHECK(options_.alpha >= 0 && options_.alpha <= 1, kName, "alpha in [0, 1]",
                options_.alpha);
  const auto mode = model.evaluating();
  const at::Tensor present = scored_heads(model);
  HeadScores scores;
  scores.metric = kName;
  scores.objective = objective.name();
  ScoreSample gradient;
  scores.samples = for_each_measured(
      kName, data, options.progress,
      [&](const Batch& batch, int64_t) -> Measured {
        const ModelState state = embed_without_graph(model, batch);
        return {
            gate_slopes(kName, model, state, objective, {.dropped_output = options.dropped_output})
                .heads.abs()};
      },
      [&](const Batch& batch, const Measured& measured) {
        gradient.add(measured[0], at::ones({batch_size(batch)}, at::kDouble));
      });
  HEADKIT_CHECK(!gradient.empty(), kName, "data with at least one example", "none");
  if (gradient.all_zero()) fail_all_zero(kName, objective);
  const ScoreSample entropy = entropy_sample(kName, model, data, LeftOutToken::kNone, {});
  const auto combined = [&](const at::Tensor& slopes, const at::Tensor& entropies) {
    const double alpha = options_.alpha;
    return (alpha * scaled_to_range(slopes, present) +
            (1 - alpha) * (1 - scaled_to_range(entropies, present))) *
           present;
  };
  summarise_scores(
      options, combined(gradient.mean(), entropy.mean()), gradient.units(),
      [&](const at::Tensor& counts) {
        return combined(gradient.means(counts), entropy.means(counts));
      },
      scores);
  scores.settings = Json{{"normalization", options.normalization},
                         {"bootstrap", options.bootstrap},
                         {"alpha", options_.alpha},
                         {"compensated", options.dropped_output.defined()}}
                        .dump();
  return scores;
}

}  // namespace headkit
