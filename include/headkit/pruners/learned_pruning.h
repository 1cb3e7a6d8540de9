#pragma once

#include "headkit/pruners/pruner.h"

namespace headkit {

/// What the pruners that train gates share.
struct LearnedPruningOptions {
  TopFractionOptions share = {};    ///< how many heads stay
  int64_t steps = 300;              ///< training steps, one a batch; the data are walked anew
  double learning_rate = 0.1;       ///< of the gates
  double weight_learning_rate = 0;  ///< > 0 trains the weights of the model too, and so changes it
  int64_t draws = 4;                ///< samples of the gates behind the reported loss
  uint64_t seed = 0;
  bool compensate = false;  ///< mean outputs at the pruned model replace the heads that go
  Progress progress = {};   ///< steps done, over all trainings
};

}  // namespace headkit
