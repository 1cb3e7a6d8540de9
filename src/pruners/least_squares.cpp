#include "headkit/pruners/least_squares.h"

#include <ATen/ATen.h>

#include <limits>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kName[] = "least_squares";

at::Tensor exact(const at::Tensor& tensor) { return tensor.detach().to(at::kCPU, at::kDouble); }

void check_gram(const at::Tensor& gram) {
  HEADKIT_CHECK(gram.defined() && gram.dim() == 2 && gram.size(0) == gram.size(1), kName,
                "a Gram matrix of shape [n, n]", "shape ",
                gram.defined() ? gram.sizes() : at::IntArrayRef());
}

// x with `system` x = `right`, of least norm where `system` is singular.
at::Tensor solve(const at::Tensor& system, const at::Tensor& right) {
  if (system.size(0) == 0) return right.clone();
  return std::get<0>(at::linalg_lstsq(system, right, std::nullopt, "gelsd"));
}

at::Tensor ridged(const at::Tensor& gram, double lambda) {
  HEADKIT_CHECK(lambda >= 0, kName, "a ridge of at least 0", lambda);
  return gram + lambda * at::eye(gram.size(0), gram.options());
}

}  // namespace

at::Tensor tune_mask(const at::Tensor& gram, const at::Tensor& cross, double lambda) {
  check_gram(gram);
  HEADKIT_CHECK(cross.dim() == 1 && cross.size(0) == gram.size(0), kName,
                "products with the target of shape [" + std::to_string(gram.size(0)) + "]",
                "shape ", cross.sizes());
  const at::Tensor products = exact(gram);
  const at::Tensor missing = exact(cross) - products.sum(1);
  return 1 + solve(ridged(products, lambda), missing.unsqueeze(1)).squeeze(1);
}

at::Tensor refit_projection(const at::Tensor& gram, const at::Tensor& cross,
                            const at::Tensor& start, double lambda) {
  check_gram(gram);
  HEADKIT_CHECK(cross.dim() == 2 && cross.size(1) == gram.size(0) && start.sizes() == cross.sizes(),
                kName, "products with the target and a start of shape [D, n]", "shapes ",
                cross.sizes(), " and ", start.sizes());
  const at::Tensor products = exact(gram), from = exact(start);
  const at::Tensor missing = exact(cross) - at::mm(from, products);
  return from + solve(ridged(products, lambda), missing.t()).t();
}

ColumnSurgeon::ColumnSurgeon(const at::Tensor& weight, const at::Tensor& gram, double damping) {
  check_gram(gram);
  HEADKIT_CHECK(weight.dim() == 2 && weight.size(1) == gram.size(0), kName,
                "a weight of shape [D, " + std::to_string(gram.size(0)) + "]", "shape ",
                weight.sizes());
  HEADKIT_CHECK(damping >= 0, kName, "a damping of at least 0", damping);
  weight_ = exact(weight).clone();
  const at::Tensor products = exact(gram);
  const double mean = products.numel() == 0 ? 0 : products.diagonal().mean().item<double>();
  auto [inverse, info] = at::linalg_inv_ex(2 * ridged(products, damping * mean));
  HEADKIT_CHECK(info.item<int>() == 0 && inverse.isfinite().all().item<bool>(), kName,
                "inputs that span all columns, or a damping above 0", "a singular matrix");
  inverse_ = inverse.contiguous();
}

double ColumnSurgeon::score(const std::vector<int64_t>& columns) const {
  const at::Tensor index = at::tensor(columns, at::kLong);
  const at::Tensor part = weight_.index_select(1, index);
  const at::Tensor block = inverse_.index_select(0, index).index_select(1, index);
  return (part * solve(block, part.t()).t()).sum().item<double>();
}

at::Tensor ColumnSurgeon::column_scores() const {
  const at::Tensor diagonal = inverse_.diagonal();
  return at::where(diagonal.gt(0), weight_.square().sum(0) / diagonal,
                   at::full_like(diagonal, std::numeric_limits<double>::infinity()));
}

void ColumnSurgeon::remove(const std::vector<int64_t>& columns) {
  const at::Tensor index = at::tensor(columns, at::kLong);
  const at::Tensor rows = inverse_.index_select(0, index);
  const at::Tensor step = solve(rows.index_select(1, index), rows);  // (H^-1_SS)^-1 H^-1_S:
  weight_ -= at::mm(weight_.index_select(1, index), step);
  inverse_ -= at::mm(rows.t(), step);
  weight_.index_fill_(1, index, 0);
  inverse_.index_fill_(0, index, 0).index_fill_(1, index, 0);
}

}  // namespace headkit
