#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "headkit/core/gate_set.h"

namespace headkit {

/// What a policy sees when it is asked before layer `layer`.
struct GateInput {
  int64_t layer = 0;
  at::Tensor hidden;          ///< [B, T, D], the input of that layer
  at::Tensor attention_mask;  ///< bool [B, T] or undefined
};

/// Decides at run time which heads run for each input. Holds settings only; what changes from call to
/// call lives in a State.
class GatePolicy {
 public:
  struct State {
    virtual ~State() = default;
    std::string records;  ///< JSON lines of the decisions taken, where asked for
  };

  virtual ~GatePolicy() = default;
  virtual std::string name() const = 0;
  virtual std::unique_ptr<State> start() const { return std::make_unique<State>(); }
  /// Gates for layers >= input.layer, [B, L, H] in original indices; earlier layers are ignored. A
  /// decision depends on the sample alone, never on its neighbours in the batch.
  virtual GateSet decide(const GateInput& input, State& state) const = 0;
  virtual std::string to_json() const = 0;
};

}  // namespace headkit
