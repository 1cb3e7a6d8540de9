#include "headkit/pruners/iterative.h"

#include <ATen/ATen.h>

#include "headkit/pruners/mean_output.h"
#include "pruners/head_course.h"
#include "pruners/masked_model.h"

namespace headkit {

StaticPruning prune_iteratively(GatedModel& model, const DataSource& data,
                                const Objective& objective, const IterativeOptions& options) {
  const auto scorer = make_scorer(options.metric);
  HeadCourse course(options.share, model.heads(), options.step);
  const int64_t going = course.to_go();
  const auto means = [&] {
    return options.compensate
               ? mean_head_outputs(model, data, {.gates = GateSet::from_mask(course.open())})
               : at::Tensor();
  };
  Json scored = Json::array();
  while (!course.done()) {
    ScoreOptions score = options.score;
    score.bootstrap = 0;
    score.dropped_output = means();
    if (options.score.progress) {
      score.progress = [&](int64_t, int64_t) {
        options.score.progress(static_cast<int64_t>(course.order().size()), going);
      };
    }
    MaskedModel masked(model, course.open(), score.dropped_output);
    const HeadScores scores = scorer->score(masked, data, objective, score);
    for (const HeadId& head : course.close(scores)) {
      scored.push_back(scores.values[head.layer][head.head].item<double>());
    }
    if (options.score.progress) {
      options.score.progress(static_cast<int64_t>(course.order().size()), going);
    }
  }
  StaticPruning pruning{.heads = course.open()};
  pruning.gates.dropped_output = means();
  pruning.details = Json{
      {"method", "iterative"},
      {"metric", options.metric},
      {"objective", objective.name()},
      {"step", options.step},
      {"compensate", options.compensate},
      {"order", heads_to_json(course.order())},
      {"scores",
       scored}}.dump();
  return pruning;
}

}  // namespace headkit
