#include "headkit/pruners/cofi.h"

#include <ATen/ATen.h>

#include <cmath>
#include <optional>

#include "headkit/core/error.h"
#include "headkit/gates/cofi_gates.h"
#include "headkit/gates/expected_size.h"
#include "pruners/learned_training.h"

namespace headkit {
namespace {

constexpr auto kMethod = "cofi";

// Largest share of weights that these gates can remove.
double reachable_sparsity(const CofiSettings& settings) {
  if (settings.hidden) return 1;
  OpenUnits open;
  const HeadLayout& layout = settings.layout;
  open.heads = at::zeros({layout.layers, layout.heads}, at::kDouble);
  if (settings.neurons) {
    open.neurons = at::zeros({layout.layers, layout.feed_forward}, at::kDouble);
  }
  if (settings.feed_forward_sublayers) {
    open.feed_forward_sublayers = at::zeros({layout.layers}, at::kDouble);
  }
  return 1 - expected_size(open, layout, settings.matrices).item<double>() /
                 full_size(layout, settings.matrices);
}

}  // namespace

StaticPruning prune_by_cofi(GatedModel& model, const DataSource& data, const Objective& objective,
                            const CofiOptions& options) {
  const LearnedPruningOptions& training = options.training;
  check_training(kMethod, training);
  HEADKIT_CHECK(options.ramp >= 0 && options.ramp <= 1, kMethod,
                "a ramp in [0, 1], a share of the steps", options.ramp);
  HEADKIT_CHECK(training.share.keep > 0, kMethod, "a share of weights to keep above 0",
                training.share.keep);
  HEADKIT_CHECK(!training.share.per_layer && training.share.min_per_layer == 0, kMethod,
                "one budget of weights for the whole model", "heads by layer");
  HEADKIT_CHECK(
      !(options.distil && training.weight_learning_rate > 0), kMethod,
      "frozen weights for distillation from the model itself (train_gates takes a teacher)",
      "weights that train");
  HEADKIT_CHECK(!training.compensate, kMethod, "no compensation beside soft values of what stays",
                "compensate");
  HEADKIT_CHECK(model.heads().removed().empty(), kMethod, "a model that has all its heads",
                model.heads().removed().size(), " removed");
  const GatedUnits units = model.gated_units();
  HEADKIT_CHECK(!options.hidden || units.hidden, kMethod,
                "a model with gates of the residual stream, for hidden", "one without");
  CofiSettings settings{
      .layout = model.layout(),
      .target_sparsity = 1 - training.share.keep,
      .attention_sublayers = options.sublayers && units.attention_sublayers,
      .neurons = options.neurons && units.neurons,
      .feed_forward_sublayers = options.sublayers && units.feed_forward_sublayers,
      .hidden = options.hidden,
      .start = options.start,
      .ramp_steps = std::lround(options.ramp * static_cast<double>(training.steps)),
      .absolute = options.absolute,
      .seed = training.seed};
  if (units.neurons) settings.matrices = model.feed_forward(0).up.defined() ? 3 : 2;
  const double reachable = reachable_sparsity(settings);
  HEADKIT_CHECK(settings.target_sparsity <= reachable, kMethod,
                c10::str("a share of weights of at least ", 1 - reachable,
                         ", what is left when everything that has gates is closed"),
                training.share.keep);

  CofiGates gates(settings);
  std::optional<LayerDistillation> distillation;
  if (options.distil) {
    const int64_t layers = settings.layout.layers;
    std::vector<int64_t> matched;
    for (int64_t quarter = 1; quarter <= 4; ++quarter) {
      const int64_t layer = (quarter * layers + 3) / 4;
      if (matched.empty() || layer > matched.back()) matched.push_back(layer);
    }
    distillation.emplace(LayerDistillationSettings{.model_dim = settings.layout.model_dim,
                                                   .teacher_layers = matched});
  }
  train(model, gates, data, objective, training, 0, training.steps,
        distillation ? &*distillation : nullptr);

  const HardenedGates hard = hardened(model, gates, data, objective, training);
  StaticPruning pruning{.heads = hard.heads, .gates = hard.gates};
  Json details{{"method", kMethod},
               {"target_sparsity", settings.target_sparsity},
               {"ramp", options.ramp},
               {"start", options.start},
               {"absolute", options.absolute},
               {"distil", options.distil}};
  add_details(details, gates, objective, training, hard);
  pruning.details = details.dump();
  return pruning;
}

}  // namespace headkit
