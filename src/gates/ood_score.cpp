#include "headkit/gates/ood_score.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "gates/tensor_text.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "ood_score";

at::Tensor checked(const at::Tensor& features, const char* what, int64_t width) {
  HEADKIT_CHECK(
      features.defined() && features.dim() == 2 && features.scalar_type() == at::kDouble &&
          features.is_cpu() && (width < 0 || features.size(1) == width),
      kOperation,
      c10::str("float64 ", what, " of shape [samples, ",
               width < 0 ? std::string("features") : std::to_string(width), "], CPU"),
      features.defined() ? c10::str(features.scalar_type(), " ", features.sizes()) : "none");
  return features.contiguous();
}

}  // namespace

OodScore OodScore::fit(const at::Tensor& features, const at::Tensor& calibration, double epsilon,
                       double shrinkage) {
  const at::Tensor seen = checked(features, "features", -1);
  const int64_t samples = seen.size(0), width = seen.size(1);
  const at::Tensor others = checked(calibration, "calibration features", width);
  HEADKIT_CHECK(samples >= 2 && width >= 1, kOperation, "at least 2 samples of 1 feature or more",
                seen.sizes());
  HEADKIT_CHECK(seen.isfinite().all().item<bool>() && others.isfinite().all().item<bool>(),
                kOperation, "finite features", "some that are not");
  HEADKIT_CHECK(epsilon > 0 && epsilon < 1, kOperation, "an epsilon in (0, 1)", epsilon);
  HEADKIT_CHECK(shrinkage > 0 && shrinkage <= 1, kOperation, "a shrinkage in (0, 1]", shrinkage);
  const auto needed = static_cast<int64_t>(std::ceil(1 / epsilon - 1 - 1e-9));
  HEADKIT_CHECK(others.size(0) >= needed, kOperation,
                c10::str("at least ", needed, " calibration samples for an epsilon of ", epsilon),
                others.size(0));
  OodScore score;
  score.epsilon_ = epsilon;
  score.mean_ = seen.mean(0);
  const at::Tensor centred = seen - score.mean_;
  const at::Tensor covariance = centred.t().matmul(centred) / static_cast<double>(samples - 1);
  const double variance = covariance.trace().item<double>() / static_cast<double>(width);
  HEADKIT_CHECK(variance > 0, kOperation, "features that differ", "a variance of 0");
  const at::Tensor identity = at::eye(width, at::kDouble);
  const at::Tensor factor =
      at::linalg_cholesky((1 - shrinkage) * covariance + shrinkage * variance * identity);
  score.whitening_ = at::linalg_solve_triangular(factor, identity, false).tril().contiguous();
  const at::Tensor sorted = std::get<0>(score(others).sort());
  const auto rank = static_cast<int64_t>(
      std::ceil(static_cast<double>(others.size(0) + 1) * (1 - epsilon) - 1e-9));
  score.limit_ = sorted[std::max<int64_t>(rank, 1) - 1].item<double>();
  return score;
}

at::Tensor OodScore::operator()(const at::Tensor& features) const {
  const at::Tensor values = checked(features, "features", size());
  const int64_t width = size();
  at::Tensor result = at::empty({values.size(0)}, at::kDouble);
  const double* const mean = mean_.const_data_ptr<double>();
  const double* const whitening = whitening_.const_data_ptr<double>();
  for (int64_t b = 0; b < values.size(0); ++b) {
    const double* const x = values.const_data_ptr<double>() + b * width;
    double sum = 0;
    for (int64_t i = 0; i < width; ++i) {
      double whitened = 0;
      for (int64_t j = 0; j <= i; ++j) whitened += whitening[i * width + j] * (x[j] - mean[j]);
      sum += whitened * whitened;
    }
    result.mutable_data_ptr<double>()[b] =
        std::isfinite(sum) ? std::sqrt(sum) : std::numeric_limits<double>::infinity();
  }
  return result;
}

std::string OodScore::to_json() const {
  return Json{{"version", 1},
              {"mean", tensor_to_text(kOperation, mean_)},
              {"whitening", tensor_to_text(kOperation, whitening_)},
              {"limit", limit_},
              {"epsilon", epsilon_}}
      .dump();
}

OodScore OodScore::from_json(const std::string& text) {
  const Json json = parse_json(kOperation, text);
  const int64_t version = integer_member(kOperation, json, "version");
  HEADKIT_CHECK(version == 1, kOperation, "version 1, as this headkit writes", version);
  OodScore score;
  score.mean_ = tensor_from_text(kOperation, member(kOperation, json, "mean"));
  score.whitening_ = tensor_from_text(kOperation, member(kOperation, json, "whitening"));
  HEADKIT_CHECK(
      score.mean_.defined() && score.mean_.dim() == 1 && score.mean_.scalar_type() == at::kDouble &&
          score.whitening_.defined() && score.whitening_.scalar_type() == at::kDouble &&
          score.whitening_.sizes() == at::IntArrayRef({score.mean_.size(0), score.mean_.size(0)}),
      kOperation, "a float64 mean [D] and whitening [D, D]", "others");
  score.limit_ = number_member(kOperation, json, "limit");
  score.epsilon_ = number_member(kOperation, json, "epsilon");
  return score;
}

}  // namespace headkit
