#include "gates/logistic_regression.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace headkit {
namespace {

constexpr int64_t kFold = 5;
constexpr int64_t kFewest = 2 * kFold;
constexpr double kUnchosenRidge = 1;   // too few examples to choose
constexpr double kBiasPenalty = 1e-6;  // keeps the bias of a class without examples finite

// Features are rotated to the principal axes, where the Hessian is nearly diagonal; a column of
// ones for the bias comes last. All tensors are double.
struct Problem {
  at::Tensor features;  // [N, F + 1]
  at::Tensor target;    // one-hot [N, C]
  at::Tensor spectrum;  // [F + 1]: mean squares of the columns
  at::Tensor penalty;   // [F + 1, 1]

  double value(const at::Tensor& theta) const {
    const at::Tensor logits = features.matmul(theta);
    const double fit = -(at::log_softmax(logits, 1) * target).sum(1).mean().item<double>();
    return fit + 0.5 * (penalty * theta.square()).sum().item<double>();
  }
};

// Solves H d = -gradient to within the tolerance of an inexact Newton step.
at::Tensor newton_step(const Problem& problem, const at::Tensor& theta, const at::Tensor& chance,
                       const at::Tensor& gradient) {
  const auto samples = static_cast<double>(problem.features.size(0));
  const auto hessian = [&](const at::Tensor& v) {
    const at::Tensor change = problem.features.matmul(v) * chance;
    const at::Tensor curved = change - chance * change.sum(1, true);
    return problem.features.t().matmul(curved) / samples + problem.penalty * v;
  };
  const at::Tensor diagonal = 0.25 * problem.spectrum.unsqueeze(1) + problem.penalty;
  at::Tensor step = at::zeros_like(theta), rest = -gradient, scaled = rest / diagonal;
  at::Tensor direction = scaled;
  double product = (rest * scaled).sum().item<double>();
  const double enough = product * 1e-6;
  for (int i = 0; i < 200 && product > enough; ++i) {
    const at::Tensor image = hessian(direction);
    const double length = product / (direction * image).sum().item<double>();
    step = step + length * direction;
    rest = rest - length * image;
    scaled = rest / diagonal;
    const double next = (rest * scaled).sum().item<double>();
    direction = scaled + (next / product) * direction;
    product = next;
  }
  return step;
}

at::Tensor minimise(const Problem& problem, at::Tensor theta) {
  const auto samples = static_cast<double>(problem.features.size(0));
  for (int i = 0; i < 100; ++i) {
    const at::Tensor chance = at::softmax(problem.features.matmul(theta), 1);
    const at::Tensor gradient =
        problem.features.t().matmul(chance - problem.target) / samples + problem.penalty * theta;
    const at::Tensor step = newton_step(problem, theta, chance, gradient);
    const double slope = (gradient * step).sum().item<double>();
    if (!(slope < -1e-15)) break;
    const double value = problem.value(theta);
    double length = 1;
    while (length > 1e-10 &&
           !(problem.value(theta + length * step) <= value + 1e-4 * length * slope))
      length /= 2;
    if (length <= 1e-10) break;
    theta = theta + length * step;
  }
  return theta;
}

}  // namespace

LogisticRegression logistic_regression(const at::Tensor& features, const at::Tensor& labels,
                                       int64_t classes, double ridge) {
  const int64_t samples = features.size(0), width = features.size(1);
  LogisticRegression result;
  result.accuracy = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor target = at::one_hot(labels, classes).to(at::kDouble);
  const auto [eigenvalues, basis] =
      at::linalg_eigh(features.t().matmul(features) / static_cast<double>(samples));
  const at::Tensor spectrum = eigenvalues.clamp_min(0);
  const double scale = spectrum.mean().item<double>();
  if (scale <= 0 || labels.eq(labels[0]).all().item<bool>()) {
    const at::Tensor count = target.sum(0) + 0.5;
    result.weight = at::zeros({classes, width}, at::kDouble);
    result.bias = (count / count.sum()).log();
    result.ridge = std::numeric_limits<double>::infinity();
    return result;
  }
  const at::Tensor rotated =
      at::cat({features.matmul(basis), at::ones({samples, 1}, at::kDouble)}, 1);
  const auto problem_on = [&](const at::Tensor& rows, double relative) {
    Problem problem{rotated.index_select(0, rows), target.index_select(0, rows),
                    at::cat({spectrum, at::ones({1}, at::kDouble)}),
                    at::full({width + 1, 1}, relative * scale, at::kDouble)};
    problem.penalty[width] = kBiasPenalty;
    return problem;
  };
  const at::Tensor none = at::zeros({width + 1, classes}, at::kDouble);
  if (samples >= kFewest) {
    const at::Tensor held = at::arange(kFold - 1, samples, kFold, at::kLong);
    const at::Tensor place = at::arange(samples, at::kLong);
    const at::Tensor rest = place.masked_select(place.remainder(kFold).ne(kFold - 1));
    const at::Tensor held_target = target.index_select(0, held);
    at::Tensor theta = none;
    double best = std::numeric_limits<double>::infinity();
    const auto hold_out = [&](double relative) {
      theta = minimise(problem_on(rest, relative), theta);
      const at::Tensor logits = rotated.index_select(0, held).matmul(theta);
      const double loss = -(at::log_softmax(logits, 1) * held_target).sum(1).mean().item<double>();
      if (!(loss < best)) return;
      best = loss;
      result.ridge = relative;
      result.accuracy =
          logits.argmax(1).eq(held_target.argmax(1)).to(at::kDouble).mean().item<double>();
    };
    if (ridge >= 0) {
      hold_out(ridge);
    } else {
      for (int exponent = 3; exponent >= -4; --exponent) hold_out(std::pow(10.0, exponent));
    }
  }
  if (ridge >= 0) result.ridge = ridge;
  if (ridge < 0 && samples < kFewest) result.ridge = kUnchosenRidge;
  const at::Tensor theta = minimise(problem_on(at::arange(samples, at::kLong), result.ridge), none);
  result.weight = basis.matmul(theta.slice(0, 0, width)).t().contiguous();
  result.bias = theta[width].contiguous();
  return result;
}

}  // namespace headkit
