#include "headkit/pruners/prune_by_scores.h"

#include "core/json.h"
#include "headkit/pruners/mean_output.h"

namespace headkit {

StaticPruning prune_by_scores(GatedModel& model, const DataSource& data, const HeadScores& scores,
                              const PruneOptions& options) {
  TopFractionOptions share = options.share;
  share.candidates = model.heads();
  StaticPruning pruning{.heads = prune_top_fraction(scores, share)};
  if (options.compensate) {
    pruning.gates.dropped_output = mean_head_outputs(
        model, data,
        {.gates = GateSet::from_mask(pruning.heads), .progress = options.score.progress});
  }
  Json details = {{"method", scores.metric},
                  {"objective", scores.objective},
                  {"compensate", options.compensate},
                  {"scores", parse_json("prune", scores.to_json())}};
  const Json settings =
      scores.settings.empty() ? Json::object() : parse_json("prune", scores.settings);
  if (settings.contains("data_hash")) details["data_hash"] = settings["data_hash"];
  pruning.details = details.dump();
  return pruning;
}

}  // namespace headkit
