#pragma once

#include <string>
#include <vector>

#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// What stands in for heads that are ablated.
struct AblationOutputs {
  std::string kind;                    ///< zero, mean, resample
  std::string reference;               ///< in words
  std::vector<at::Tensor> draws = {};  ///< [L, H, D] each; undefined = nothing
};

/// zero: nothing. mean: the mean output of each head over the valid tokens of `data`. resample:
/// that over the tokens of one other input, for `draws` inputs of `data` drawn without replacement.
/// Throws std::invalid_argument for another kind, and without data where they are needed.
AblationOutputs ablation_outputs(const char* operation, GatedModel& model, const std::string& kind,
                                 const DataSource* data, int64_t draws, uint64_t seed);

}  // namespace headkit
