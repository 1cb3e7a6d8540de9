#include "headkit/gates/hard_concrete.h"

#include <ATen/ATen.h>

#include <cmath>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "hard_concrete";
constexpr double kSmallestUniform = 1e-6;

void check(const at::Tensor& log_alpha, const HardConcrete& shape) {
  shape.check(kOperation);
  HEADKIT_CHECK(log_alpha.defined() && (log_alpha.scalar_type() == at::kFloat ||
                                        log_alpha.scalar_type() == at::kDouble),
                kOperation, "log_alpha in float32 or float64",
                log_alpha.defined() ? c10::str(log_alpha.scalar_type()) : "none");
}

at::Tensor stretched(const at::Tensor& sigmoid, const HardConcrete& shape) {
  return at::clamp(sigmoid * (shape.zeta - shape.gamma) + shape.gamma, 0, 1);
}

}  // namespace

void HardConcrete::check(const char* operation) const {
  HEADKIT_CHECK(gamma < 0 && zeta > 1 && beta > 0 && std::isfinite(gamma + zeta + beta), operation,
                "gamma < 0, zeta > 1 and beta > 0", "gamma ", gamma, ", zeta ", zeta, ", beta ",
                beta);
}

at::Tensor hard_concrete_sample(const at::Tensor& log_alpha, const at::Tensor& uniform,
                                const HardConcrete& shape) {
  check(log_alpha, shape);
  HEADKIT_CHECK(uniform.defined() && uniform.is_floating_point(), kOperation,
                "uniform numbers in (0, 1)",
                uniform.defined() ? c10::str(uniform.scalar_type()) : "none");
  const at::Tensor u =
      uniform.to(log_alpha.options()).clamp(kSmallestUniform, 1 - kSmallestUniform);
  return stretched(at::sigmoid((u.log() - (-u).log1p() + log_alpha) / shape.beta), shape);
}

at::Tensor hard_concrete_test_gate(const at::Tensor& log_alpha, const HardConcrete& shape) {
  check(log_alpha, shape);
  return stretched(at::sigmoid(log_alpha), shape);
}

at::Tensor hard_concrete_closed_probability(const at::Tensor& log_alpha,
                                            const HardConcrete& shape) {
  check(log_alpha, shape);
  return at::sigmoid(shape.beta * std::log(-shape.gamma / shape.zeta) - log_alpha);
}

at::Tensor hard_concrete_open_probability(const at::Tensor& log_alpha, const HardConcrete& shape) {
  check(log_alpha, shape);
  return at::sigmoid(log_alpha - shape.beta * std::log(-shape.gamma / shape.zeta));
}

at::Tensor hard_concrete_full_probability(const at::Tensor& log_alpha, const HardConcrete& shape) {
  check(log_alpha, shape);
  return at::sigmoid(log_alpha - shape.beta * std::log((1 - shape.gamma) / (shape.zeta - 1)));
}

OpenCounts count_open_gates(const at::Tensor& log_alpha, const HardConcrete& shape) {
  const at::Tensor values = log_alpha.detach();
  const at::Tensor test = hard_concrete_test_gate(values, shape) > 0;
  const at::Tensor probable = hard_concrete_open_probability(values, shape) > 0.5;
  const at::Tensor likelier = values > 0;
  const auto count = [](const at::Tensor& open) { return open.sum().item<int64_t>(); };
  return {count(test), count(probable), count(likelier),
          count((test != probable).logical_or(probable != likelier))};
}

}  // namespace headkit
