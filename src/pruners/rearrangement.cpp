#include "headkit/pruners/rearrangement.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "headkit/core/error.h"

namespace headkit {
namespace {

at::Tensor checked_gram(const at::Tensor& gram) {
  HEADKIT_CHECK(gram.defined() && gram.dim() == 2 && gram.size(0) == gram.size(1), "rearrangement",
                "products of gradients of shape [n, n]", "shape ",
                gram.defined() ? gram.sizes() : at::IntArrayRef());
  return gram.detach().to(at::kCPU, at::kDouble).contiguous();
}

}  // namespace

std::vector<int64_t> rearrange_closed(const at::Tensor& gram, int64_t count) {
  const at::Tensor products = checked_gram(gram);
  const int64_t size = products.size(0);
  HEADKIT_CHECK(count >= 0 && count <= size, "rearrangement",
                "at most " + std::to_string(size) + " units to close", count);
  const double* product = products.const_data_ptr<double>();
  const auto norm = [&](int64_t unit) { return product[unit * size + unit]; };
  std::vector<int64_t> order(static_cast<size_t>(size));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return norm(a) < norm(b); });
  std::vector<int64_t> closed(order.begin(), order.begin() + count);
  if (count == 0) return closed;
  // Product of each unit's gradient with the sum over the closed ones.
  std::vector<double> with_sum(static_cast<size_t>(size), 0);
  const auto add = [&](int64_t unit, double sign) {
    const double* row = product + unit * size;
    for (int64_t i = 0; i < size; ++i) with_sum[i] += sign * row[i];
  };
  for (const int64_t unit : closed) add(unit, 1);
  for (auto next = order.begin() + count; next != order.end(); ++next) {
    closed.push_back(*next);
    add(*next, 1);
    // Without unit u the objective falls by 2 <g_u, sum> - |g_u|^2. On ties the newcomer goes.
    const auto gain = [&](int64_t unit) { return 2 * with_sum[unit] - norm(unit); };
    size_t leaving = closed.size() - 1;
    for (size_t i = 0; i + 1 < closed.size(); ++i) {
      if (gain(closed[i]) > gain(closed[leaving])) leaving = i;
    }
    add(closed[leaving], -1);
    closed.erase(closed.begin() + static_cast<int64_t>(leaving));
  }
  std::sort(closed.begin(), closed.end());
  return closed;
}

double closed_objective(const at::Tensor& gram, const std::vector<int64_t>& closed) {
  const at::Tensor index = at::tensor(closed, at::kLong);
  return checked_gram(gram).index_select(0, index).index_select(1, index).sum().item<double>();
}

}  // namespace headkit
