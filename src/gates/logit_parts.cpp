#include "gates/logit_parts.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace headkit {
namespace {

constexpr size_t kListedParts = 8;

}  // namespace

LogitParts::LogitParts(const at::Tensor& hidden, const at::Tensor& valid, const at::Tensor& weight,
                       const at::Tensor& reference, const at::Tensor& scalars,
                       const std::vector<std::string>& names)
    : names_(names) {
  const int64_t width = hidden.size(1), count = scalars.size(0);
  const at::Tensor places = valid.defined() ? valid.to(at::kCPU, at::kBool).nonzero().flatten()
                                            : at::arange(hidden.size(0));
  place_.assign(places.const_data_ptr<int64_t>(),
                places.const_data_ptr<int64_t>() + places.numel());
  const at::Tensor deviation = hidden.detach().to(at::kCPU, at::kDouble).index_select(0, places) -
                               reference.slice(0, 0, width);
  token_parts_ = deviation.matmul(weight.slice(1, 0, width).t())
                     .div(static_cast<double>(std::max<int64_t>(1, places.numel())))
                     .t()
                     .contiguous();
  scalar_parts_ =
      (weight.slice(1, width, width + count) * (scalars - reference.slice(0, width, width + count)))
          .contiguous();
}

void LogitParts::explain(int64_t head, double logit, double base, HeadDecision& decision) const {
  const auto tokens = static_cast<int64_t>(place_.size());
  const auto scalars = static_cast<int64_t>(names_.size());
  const double* const of_token = token_parts_.const_data_ptr<double>() + head * tokens;
  const double* const of_scalar = scalar_parts_.const_data_ptr<double>() + head * scalars;
  std::vector<LogitPart>& parts = decision.parts;
  for (int64_t t = 0; t < tokens; ++t) parts.push_back({place_[t], of_token[t]});
  for (int64_t i = 0; i < scalars; ++i) parts.push_back({-1, of_scalar[i], names_[i]});
  std::stable_sort(parts.begin(), parts.end(), [](const LogitPart& a, const LogitPart& b) {
    return std::abs(a.value) > std::abs(b.value);
  });
  // Scalars are always listed, whatever their size.
  std::stable_partition(parts.begin(), parts.end(),
                        [&](const LogitPart& part) { return !part.feature.empty(); });
  const size_t listed_parts = kListedParts + names_.size();
  double listed = base, rest = 0;
  for (size_t i = 0; i < parts.size(); ++i) (i < listed_parts ? listed : rest) += parts[i].value;
  if (parts.size() > listed_parts) parts.resize(listed_parts);
  std::stable_sort(parts.begin(), parts.end(), [](const LogitPart& a, const LogitPart& b) {
    return std::abs(a.value) > std::abs(b.value);
  });
  decision.base = base;
  decision.rest = rest;
  decision.residual = logit - (listed + rest);
}

}  // namespace headkit
