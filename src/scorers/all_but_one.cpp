#include "headkit/scorers/all_but_one.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/ablation_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "all_but_one";

}  // namespace

HeadScores AllButOneScorer::score(GatedModel& model, const DataSource& data,
                                  const Objective& objective, const ScoreOptions& options) const {
  check_score_options(options);
  const AblationSample sample = ablation_sample(kName, model, data, objective,
                                                {.all_but_one = true,
                                                 .dropped_output = options.dropped_output,
                                                 .progress = options.progress});
  HeadScores scores;
  scores.metric = kName;
  scores.objective = objective.name();
  scores.samples = sample.examples;
  const at::Tensor rises = sample.deltas.mean();
  summarise_scores(
      options, -rises, sample.deltas.units(),
      [&](const at::Tensor& counts) { return -sample.deltas.means(counts); }, scores);

  const HeadMask present = model.heads();
  Json best = Json::array();
  for (int64_t layer = 0; layer < rises.size(0); ++layer) {
    best.push_back(nullptr);
    for (int64_t head : present.layer_heads(layer)) {
      const double rise = rises[layer][head].item<double>();
      if (best.back().is_null() || rise < best.back()["rise"].get<double>()) {
        best.back() = {{"head", head}, {"rise", rise}};
      }
    }
  }
  Json settings = {{"normalization", options.normalization},
                   {"bootstrap", options.bootstrap},
                   {"compensated", options.dropped_output.defined()},
                   {"best", best}};
  if (sample.flips.defined()) settings["flips"] = flip_rows(sample.flips);
  scores.settings = settings.dump();
  return scores;
}

}  // namespace headkit
