#pragma once

#include <optional>

#include "explain/input_runs.h"

namespace headkit {

/// What heads add to m along the residual stream alone.
struct DirectEffects {
  at::Tensor heads;  ///< double [L, H]: g dm/dg by direct paths; of closed heads dm/dg at 0
  /// m - (blocks + what is embedded + biases); unset where some of these are not known.
  std::optional<double> residual;
  /// Whether more than the last norm was frozen, or m is not the sum of what is written.
  bool linearised = true;
};

/// One forward and one backward. Unset for a model whose residual stream is not known.
std::optional<DirectEffects> direct_effects(GatedModel& model, const InputRuns& input);

}  // namespace headkit
