#pragma once

#include <string>

#include "headkit/gates/learned_gates.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// Settings of `harden`.
struct HardenOptions {
  int64_t draws = 8;  ///< samples of the gates behind `sampled_loss`, >= 1
  int64_t step = 0;   ///< training step whose temperature and target hold
  uint64_t seed = 0;
  Progress progress = {};  ///< batches done
};

/// Trained gates as what prunes, and what that costs: mean losses over the same examples under the
/// gates that training saw, without their noise, and as they are used. Training lowers
/// `sampled_loss`; the pruned model has `hard_loss`.
struct HardenedGates {
  HeadMask heads;  ///< heads with a hard gate other than 0
  GateSet gates;   ///< LearnedGates::hard(): soft values of kept units are to be folded
  double dense_loss = 0;
  double sampled_loss = 0;
  double sampled_deviation = 0;  ///< standard deviation between the draws' mean losses
  double soft_loss = 0;
  double hard_loss = 0;
  int64_t draws = 0;
  int64_t examples = 0;
  std::string description;  ///< LearnedGates::describe
  std::string to_json() const;
};

/// Hardens gates and reports the loss under sampled, soft and binarised gates. The model is run
/// without dropout and not changed. Cost: draws + 3 forwards. Throws std::invalid_argument for data
/// without examples.
HardenedGates harden(GatedModel& model, const LearnedGates& gates, const DataSource& data,
                     const Objective& objective, const HardenOptions& options = {});

}  // namespace headkit
