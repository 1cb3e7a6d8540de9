#include "headkit/pruners/subset.h"

#include <algorithm>
#include <cmath>

#include "headkit/core/error.h"
#include "headkit/gates/subset_gates.h"
#include "pruners/learned_training.h"

namespace headkit {

StaticPruning prune_by_subset(GatedModel& model, const DataSource& data, const Objective& objective,
                              const SubsetOptions& options) {
  constexpr auto kMethod = "subset";
  const LearnedPruningOptions& training = options.training;
  check_training(kMethod, training);
  HEADKIT_CHECK(options.cooldown > 0 && options.cooldown <= 1, kMethod,
                "a cooldown in (0, 1], a share of the steps", options.cooldown);
  const HeadLayout layout = model.layout();
  const int64_t keep = heads_to_keep(model, training.share);
  const auto cooldown = std::max<int64_t>(
      1, static_cast<int64_t>(std::lround(options.cooldown * static_cast<double>(training.steps))));
  SubsetGates gates({.layers = layout.layers,
                     .heads = layout.heads,
                     .keep = keep,
                     .temperature = {options.first_temperature, options.last_temperature, cooldown},
                     .straight_through = options.straight_through});
  close_lost_heads(model, gates.parameters()[0].value);
  train(model, gates, data, objective, training, 0, training.steps);
  return prune_by_values(model, data, objective, gates, gates.parameters()[0].value, training,
                         {{"method", kMethod},
                          {"keep", keep},
                          {"first_temperature", options.first_temperature},
                          {"last_temperature", options.last_temperature},
                          {"cooldown_steps", cooldown},
                          {"straight_through", options.straight_through}});
}

}  // namespace headkit
