#pragma once

#include "headkit/pruners/learned_pruning.h"

namespace headkit {

/// Settings of `prune_by_voita`.
struct VoitaOptions {
  LearnedPruningOptions training = {};
  int64_t rounds = 6;           ///< trainings of the search for lambda, >= 1
  double first_penalty = 0.01;  ///< lambda of the first round, > 0
  double beta = 0.33;           ///< temperature of the hard concrete
};

/// Prunes by L0-regularised gates. The number of heads that stay follows from lambda, so that
/// lambda is searched: doubled or halved until the budget is enclosed, then bisected on a
/// logarithmic scale, each round with fresh gates and frozen weights. The round whose number of
/// open heads (log_alpha > 0) is nearest to the budget counts; its heads of largest log_alpha stay,
/// exactly as many as the budget says. With `weight_learning_rate` > 0 a last training at that
/// lambda trains the weights too. `details`: lambda, open heads of each round, losses under
/// sampled, soft and hard gates. Source: Voita et al. 2019.
StaticPruning prune_by_voita(GatedModel& model, const DataSource& data, const Objective& objective,
                             const VoitaOptions& options = {});

}  // namespace headkit
