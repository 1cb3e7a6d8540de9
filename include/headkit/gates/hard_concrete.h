#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace headkit {

/// A random gate that is exactly 0 or exactly 1 with positive probability: a sigmoid stretched from
/// (0, 1) to (gamma, zeta), then clipped. Source: Louizos, Welling, Kingma 2018.
struct HardConcrete {
  double gamma = -0.1;  ///< lower end of the stretched interval, < 0
  double zeta = 1.1;    ///< upper end, > 1
  double beta = 0.33;   ///< temperature, > 0: 0.33 in Voita et al. 2019, 2/3 in CoFi

  /// Throws std::invalid_argument for values out of these ranges.
  void check(const char* operation) const;
};

/// The functions below take `log_alpha` of any shape, float32 or float64, and return that shape.
/// They are differentiable in `log_alpha`; where the clip is active the gradient is exactly 0, so a
/// head with such a gate can be skipped.

/// A sample for each `uniform` in (0, 1), same shape as `log_alpha` or one that it broadcasts to;
/// what lies outside [1e-6, 1 - 1e-6] is moved to that end.
at::Tensor hard_concrete_sample(const at::Tensor& log_alpha, const at::Tensor& uniform,
                                const HardConcrete& shape = {});
/// The deterministic gate of use: no noise and no temperature.
at::Tensor hard_concrete_test_gate(const at::Tensor& log_alpha, const HardConcrete& shape = {});
at::Tensor hard_concrete_closed_probability(const at::Tensor& log_alpha,
                                            const HardConcrete& shape = {});  ///< P(gate = 0)
at::Tensor hard_concrete_open_probability(const at::Tensor& log_alpha,
                                          const HardConcrete& shape = {});  ///< P(gate > 0)
at::Tensor hard_concrete_full_probability(const at::Tensor& log_alpha,
                                          const HardConcrete& shape = {});  ///< P(gate = 1)

/// Open gates by three criteria that are not the same, and how many gates they disagree on: the gap
/// between the trained and the deployed model.
struct OpenCounts {
  int64_t test_gate = 0;    ///< test gate > 0
  int64_t probability = 0;  ///< P(gate > 0) > 1/2
  int64_t likelier = 0;     ///< 1 is the likelier end, log_alpha > 0: the rule that hardens
  int64_t between = 0;      ///< gates on which they disagree
};
OpenCounts count_open_gates(const at::Tensor& log_alpha, const HardConcrete& shape = {});

}  // namespace headkit
