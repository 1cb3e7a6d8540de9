#include "pruners/learned_training.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "headkit/core/error.h"
#include "headkit/gates/train_gates.h"
#include "headkit/pruners/mean_output.h"

namespace headkit {
namespace {

// Far enough that every probability of being open is exactly 0 at the temperatures in use.
constexpr double kLost = -1e6;

}  // namespace

void read_training_settings(MethodSettings& settings, LearnedPruningOptions& options) {
  settings.read("steps", options.steps, "training steps, one a batch");
  settings.read("learning_rate", options.learning_rate, "of the gates");
  settings.read("weight_learning_rate", options.weight_learning_rate,
                "of the weights; above 0 changes the model");
  settings.read("draws", options.draws, "samples of the gates behind the reported loss");
  settings.read("seed", options.seed, "of the gates' noise");
}

LearnedPruningOptions learned_pruning(const PruneOptions& given, LearnedPruningOptions standard) {
  standard.share = given.share;
  standard.compensate = given.compensate;
  standard.seed = given.score.seed;
  standard.progress = given.score.progress;
  return standard;
}

void check_training(const char* method, const LearnedPruningOptions& options) {
  HEADKIT_CHECK(options.share.keep >= 0 && options.share.keep <= 1, method,
                "a share to keep in [0, 1]", options.share.keep);
  HEADKIT_CHECK(options.steps >= 1 && options.draws >= 1, method, "at least one step and draw",
                options.steps, " and ", options.draws);
  HEADKIT_CHECK(options.learning_rate > 0 && options.weight_learning_rate >= 0, method,
                "a learning rate above 0, and one of weights of at least 0", options.learning_rate,
                " and ", options.weight_learning_rate);
}

int64_t heads_to_keep(GatedModel& model, const TopFractionOptions& share) {
  const HeadLayout layout = model.layout();
  const int64_t keep = share.per_layer
                           ? layout.layers * kept_heads(share.keep, layout.heads, share.rounding)
                           : kept_heads(share.keep, layout.total_heads(), share.rounding);
  return std::min(keep, model.heads().count());
}

void close_lost_heads(GatedModel& model, const at::Tensor& parameter) {
  const c10::NoGradGuard no_grad;
  at::Tensor values = parameter;
  values.masked_fill_(model.heads().keep().logical_not().to(values.device()), kLost);
}

void train(GatedModel& model, LearnedGates& gates, const DataSource& data,
           const Objective& objective, const LearnedPruningOptions& options, int64_t done,
           int64_t total, const LayerDistillation* distillation) {
  TrainGatesOptions training{.steps = options.steps,
                             .learning_rate = options.learning_rate,
                             .weight_learning_rate = options.weight_learning_rate,
                             .seed = options.seed,
                             .distillation = distillation};
  if (options.progress) {
    training.progress = [&](int64_t step, int64_t) { options.progress(done + step, total); };
  }
  train_gates(model, gates, data, objective, training);
}

HardenedGates hardened(GatedModel& model, const LearnedGates& gates, const DataSource& data,
                       const Objective& objective, const LearnedPruningOptions& options) {
  return harden(model, gates, data, objective,
                {.draws = options.draws, .step = options.steps, .seed = options.seed});
}

void add_details(Json& details, const LearnedGates& gates, const Objective& objective,
                 const LearnedPruningOptions& options, const HardenedGates& hardened) {
  details["gates"] = gates.name();
  details["objective"] = objective.name();
  details["steps"] = options.steps;
  details["learning_rate"] = options.learning_rate;
  details["weight_learning_rate"] = options.weight_learning_rate;
  details["seed"] = options.seed;
  details["compensate"] = options.compensate;
  details["hardening"] = parse_json("prune", hardened.to_json());
}

StaticPruning prune_by_values(GatedModel& model, const DataSource& data, const Objective& objective,
                              const LearnedGates& gates, const at::Tensor& values,
                              const LearnedPruningOptions& options, Json details) {
  HeadScores scores;
  scores.values = values.detach().to(at::kCPU, at::kDouble);
  scores.metric = gates.name();
  TopFractionOptions share = options.share;
  share.candidates = model.heads();
  StaticPruning pruning{.heads = prune_top_fraction(scores, share)};
  if (options.compensate) {
    pruning.gates.dropped_output =
        mean_head_outputs(model, data, {.gates = GateSet::from_mask(pruning.heads)});
  }
  add_details(details, gates, objective, options, hardened(model, gates, data, objective, options));
  details["values"] = tensor_to_json("prune", scores.values);
  pruning.details = details.dump();
  return pruning;
}

}  // namespace headkit
