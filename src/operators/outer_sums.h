#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace headkit {

/// The gates of some units, heads or blocks of neurons, and what a closed one adds.
struct UnitGates {
  at::Tensor gate;            // undefined, [U] or [B, U]
  at::Tensor dropped_output;  // undefined or [U, D]
  int64_t units = 0;
  bool skip = true;
};

/// What needs no more than the sum of grad [B, T, D] over the tokens of each sample, and the gate:
/// the gradient of what a closed gate adds, of the dropped outputs and of the bias of the output.
/// Sums are kept in float64; all results are float32, the same on any number of threads.
class OuterSums {
 public:
  OuterSums(const UnitGates& gates, const at::Tensor& grad);

  /// [D].
  at::Tensor bias() const;
  /// sum over samples of (1 - gate) grad, [U, D].
  at::Tensor dropped_output() const;
  /// `of_units` [B, U], float32, less what an open gate takes from the dropped outputs; summed over
  /// samples for a gate [U].
  at::Tensor gate(const at::Tensor& of_units) const;

 private:
  // [B, U] float32.
  at::Tensor by_sample() const;
  at::Tensor to_tensor(const std::vector<double>& values, at::IntArrayRef shape) const;

  const UnitGates gates_;
  const int64_t batch_, width_;
  std::vector<double> sums_;  // [B, D]
};

}  // namespace headkit
