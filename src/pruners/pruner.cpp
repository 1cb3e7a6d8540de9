#include "headkit/pruners/pruner.h"

#include "headkit/core/error.h"

namespace headkit {
namespace {

std::vector<PrunerInfo> one_shot_pruners() {
  std::vector<PrunerInfo> all;
  for (const ScorerInfo& scorer : scorers()) {
    all.push_back(
        {.name = scorer.name,
         .definition = "Scores once, keeps the top share of heads. Score: " + scorer.definition,
         .source = "Michel, Levy, Neubig 2019 (one shot); score: " + scorer.source,
         .cost = scorer.cost,
         .needs = scorer.needs,
         .prune = [name = scorer.name](GatedModel& model, const DataSource& data,
                                       const Objective& objective, const PruneOptions& options) {
           TopFractionOptions share = options.share;
           share.candidates = model.heads();
           const HeadScores scores =
               make_scorer(name)->score(model, data, objective, options.score);
           return prune_top_fraction(scores, share);
         }});
  }
  return all;
}

}  // namespace

const std::vector<PrunerInfo>& pruners() {
  static const std::vector<PrunerInfo> all = one_shot_pruners();
  return all;
}

const PrunerInfo& find_pruner(const std::string& name) {
  std::string known;
  for (const PrunerInfo& each : pruners()) {
    if (each.name == name) return each;
    known += (known.empty() ? "" : ", ") + each.name;
  }
  throw std::invalid_argument(error_message("prune", "a method among " + known, "'", name, "'"));
}

}  // namespace headkit
