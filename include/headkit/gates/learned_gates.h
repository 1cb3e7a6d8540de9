#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "headkit/core/gate_set.h"

namespace headkit {

/// A leaf tensor that training changes.
struct GateParameter {
  std::string name;
  at::Tensor value;     ///< requires a gradient
  bool ascend = false;  ///< a Lagrange multiplier: gradient ascent instead of descent
};

/// Gates that are trained, not computed from scores: settings and parameters, nothing else, so that
/// any training loop can use them.
///
///     gates = learned.sample(step, examples, generator)      the model runs under them
///     (loss + learned.penalty(step)).backward()
///     an optimiser step on `parameters()`, without weight decay; then learned.after_step()
///
/// `step` counts optimiser steps from 0, for temperatures and targets that change.
class LearnedGates {
 public:
  virtual ~LearnedGates() = default;
  virtual std::string name() const = 0;

  const std::vector<GateParameter>& parameters() const { return parameters_; }
  /// Takes `value` in place of a parameter, without a copy: a module's own tensor. Throws
  /// std::invalid_argument for an unknown name, another shape, and what is not float32 or float64.
  void set_parameter(const std::string& name, at::Tensor value);

  /// Gates of one training step, differentiable, with noise. `skip` is set where a gate of 0 has no
  /// gradient, so that training costs less as gates close.
  virtual GateSet sample(int64_t step, int64_t examples, const at::Generator& generator) const = 0;
  /// The same gates without noise, not yet binarised: what many publications evaluate.
  virtual GateSet soft(int64_t step) const = 0;
  /// The gates of use: what pruning by them gives. A gate of 0 is removed, another value is folded
  /// into the weights.
  virtual GateSet hard() const = 0;
  /// What training adds to a loss that is a mean over examples: a scalar, differentiable.
  virtual at::Tensor penalty(int64_t step) const = 0;
  /// Brings parameters back into their range, in place, after an optimiser step.
  virtual void after_step() {}
  /// JSON: what is open by which criterion, the temperature or target of `step`.
  virtual std::string describe(int64_t step) const = 0;

 protected:
  void add_parameter(std::string name, const at::Tensor& value, bool ascend = false);
  const at::Tensor& parameter(const std::string& name) const;
  bool has_parameter(const std::string& name) const;

 private:
  std::vector<GateParameter> parameters_;
};

}  // namespace headkit
