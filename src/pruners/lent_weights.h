#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "headkit/models/gated_model.h"

namespace headkit {

/// Output projections that are overwritten for a while: put back when this goes. The parameters
/// stay the same objects.
class LentWeights {
 public:
  LentWeights() = default;
  LentWeights(const LentWeights&) = delete;
  LentWeights& operator=(const LentWeights&) = delete;
  ~LentWeights();

  /// `tensor`: a weight or bias as the model shows it, sharing its memory.
  void write(const at::Tensor& tensor, const at::Tensor& values);

 private:
  struct Kept {
    at::Tensor tensor, values;
  };
  std::vector<Kept> kept_;
};

/// Throws std::invalid_argument where two layers share an output projection.
void check_own_outputs(const char* operation, GatedModel& model, bool feed_forward);

}  // namespace headkit
