#include "headkit/pruners/fixed_target.h"

#include <cmath>

#include "headkit/core/error.h"
#include "headkit/gates/fixed_target_gates.h"
#include "pruners/learned_training.h"

namespace headkit {

StaticPruning prune_by_fixed_target(GatedModel& model, const DataSource& data,
                                    const Objective& objective, const FixedTargetOptions& options) {
  constexpr auto kMethod = "fixed_target";
  const LearnedPruningOptions& training = options.training;
  check_training(kMethod, training);
  HEADKIT_CHECK(options.ramp >= 0 && options.ramp <= 1, kMethod,
                "a ramp in [0, 1], a share of the steps", options.ramp);
  const HeadLayout layout = model.layout();
  const bool per_layer = training.share.per_layer;
  const int64_t keep = heads_to_keep(model, training.share);
  FixedTargetGates gates(
      {.layout = layout,
       .heads = per_layer ? keep / layout.layers : keep,
       .per_layer = per_layer,
       .shape = {.beta = options.beta},
       .start = options.start,
       .ramp_steps = std::lround(options.ramp * static_cast<double>(training.steps))});
  close_lost_heads(model, gates.parameters()[0].value);
  train(model, gates, data, objective, training, 0, training.steps);
  return prune_by_values(model, data, objective, gates, gates.parameters()[0].value, training,
                         {{"method", kMethod},
                          {"keep", keep},
                          {"ramp", options.ramp},
                          {"start", options.start},
                          {"beta", options.beta}});
}

}  // namespace headkit
