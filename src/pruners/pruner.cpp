#include "headkit/pruners/pruner.h"

#include "headkit/core/error.h"
#include "headkit/pruners/backward_elimination.h"
#include "headkit/pruners/iterative.h"
#include "headkit/pruners/kwon.h"
#include "headkit/pruners/mean_output.h"
#include "headkit/pruners/removal.h"
#include "pruners/method_settings.h"

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
           MethodSettings settings(name, options.settings);
           ScoreOptions score = options.score;
           read_score_settings(settings, score);
           settings.check_all_read();
           TopFractionOptions share = options.share;
           share.candidates = model.heads();
           const HeadScores scores = make_scorer(name)->score(model, data, objective, score);
           StaticPruning pruning{.heads = prune_top_fraction(scores, share)};
           if (options.compensate) {
             pruning.gates.dropped_output =
                 mean_head_outputs(model, data, {.gates = GateSet::from_mask(pruning.heads)});
           }
           pruning.details = Json{{"method", name},
                                  {"objective", objective.name()},
                                  {"compensate", options.compensate},
                                  {"scores", parse_json("prune", scores.to_json())}}
                                 .dump();
           return pruning;
         }});
  }
  return all;
}

void read(MethodSettings& settings, IterativeOptions& options) {
  settings.read("metric", options.metric, "a name in headkit.scorers()");
  settings.read("step", options.step, "heads that go between two scorings; 1 = exact");
  read_score_settings(settings, options.score);
}

void read(MethodSettings& settings, BackwardEliminationOptions& options) {
  settings.read("step", options.step, "heads that go between two evaluations");
  settings.read("shortlist", options.shortlist,
                "heads tried in a step, those that did least harm before; 0 = all");
}

void read(MethodSettings& settings, KwonOptions& options) {
  settings.read("neurons", options.neurons,
                "also prune neurons, where the model has gates of them");
  settings.read("tokens", options.tokens, "length that costs are counted at; 0 = mean of the data");
  settings.read("head_latency", options.head_latency,
                "latencies of an attention block with 1, 2, .. heads, instead of MACs");
  settings.read("neuron_latency", options.neuron_latency,
                "latencies of a feed-forward block with evenly many neurons in each entry");
  settings.read("other_latency", options.other_latency, "latency beside these blocks");
  settings.read("rearrange", options.rearrange, "swap units of a layer by the block Fisher");
  settings.read("tune", options.tune, "scale what stays by ridge regression");
  settings.read("ridge", options.ridge, "of the tuning, in units of the mean squared output");
  settings.read("largest_scale", options.largest_scale, "layers that exceed it keep 1");
  settings.read("tune_examples", options.tune_examples, "examples that tuning looks at; 0 = all");
}

// An entry of the registry around a function with options of its own; `begin` makes them from what
// all methods share.
template <typename Options>
PrunerInfo with_settings(PrunerInfo info, Options (*begin)(const PruneOptions&),
                         StaticPruning (*prune)(GatedModel&, const DataSource&, const Objective&,
                                                const Options&)) {
  MethodSettings none(info.name, "{}");
  Options standard = begin({});
  read(none, standard);
  info.settings = none.known();
  info.prune = [name = info.name, begin, prune](GatedModel& model, const DataSource& data,
                                                const Objective& objective,
                                                const PruneOptions& given) {
    Options options = begin(given);
    MethodSettings settings(name, given.settings);
    read(settings, options);
    settings.check_all_read();
    return prune(model, data, objective, options);
  };
  return info;
}

// A method with a budget of costs takes no counts of heads.
void check_plain_share(const char* method, const TopFractionOptions& share) {
  HEADKIT_CHECK(
      !share.per_layer && share.min_per_layer == 0, "prune",
      std::string("neither per_layer nor min_per_layer for ") + method + ", whose budget is a cost",
      share.per_layer ? "per_layer" : "min_per_layer");
}

std::vector<PrunerInfo> searching_pruners() {
  return {
      with_settings<IterativeOptions>(
          {.name = "iterative",
           .definition = "Removes the heads of least score, scores again with them closed, and so "
                         "on; step = 1 is exact re-estimation",
           .source = "Michel, Levy, Neubig 2019",
           .cost = "(heads that go / step) times the metric",
           .needs = "what the metric needs",
           .prune = nullptr},
          [](const PruneOptions& given) {
            return IterativeOptions{
                .share = given.share, .score = given.score, .compensate = given.compensate};
          },
          &prune_iteratively),
      with_settings<BackwardEliminationOptions>(
          {.name = "backward_elimination",
           .definition = "Removes, one after the other, the head without which the mean loss of "
                         "what is left is lowest",
           .source = "greedy ablation after Michel, Levy, Neubig 2019",
           .cost = "about (heads left + 1) / 2 forwards of what is left, for each step",
           .needs = "labels, or nothing with KL or cosine to the dense model",
           .prune = nullptr},
          [](const PruneOptions& given) {
            return BackwardEliminationOptions{.share = given.share,
                                              .compensate = given.compensate,
                                              .progress = given.score.progress};
          },
          &prune_by_elimination),
      with_settings<KwonOptions>(
          {.name = "kwon",
           .definition = "Mask search by Fisher information under MACs or measured latency, "
                         "rearrangement, and ridge tuning of what stays",
           .source = "Kwon et al. 2022",
           .cost = "1 forward + 1 backward, about 5 forwards for tuning",
           .needs = "labels, or whatever the objective reads",
           .prune = nullptr,
           .budget = "MACs, or latency where tables are given"},
          [](const PruneOptions& given) {
            check_plain_share("kwon", given.share);
            return KwonOptions{.keep = given.share.keep,
                               .compensate = given.compensate,
                               .progress = given.score.progress};
          },
          &prune_kwon),
  };
}

}  // namespace

const std::vector<PrunerInfo>& pruners() {
  static const std::vector<PrunerInfo> all = [] {
    std::vector<PrunerInfo> each = one_shot_pruners();
    for (PrunerInfo& method : searching_pruners()) each.push_back(std::move(method));
    return each;
  }();
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

StaticPruning prune(GatedModel& model, const DataSource& data, const Objective& objective,
                    const std::string& method, const PruneOptions& options) {
  return find_pruner(method).prune(model, data, objective, options);
}

void apply_pruning(GatedModel& model, const StaticPruning& pruning) {
  remove_units(model, pruning.all_gates());
}

GateSet StaticPruning::all_gates() const {
  GateSet all = gates;
  all.heads = heads.keep().to(at::kDouble);
  if (gates.heads.defined()) all.heads = all.heads * gates.heads.to(at::kCPU, at::kDouble);
  return all;
}

}  // namespace headkit
