#include "gates/affine_rows.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "operators/task_queue.h"

namespace headkit {

at::Tensor affine_rows(const at::Tensor& features, const at::Tensor& reference,
                       const at::Tensor& weight, const at::Tensor& base) {
  const int64_t rows = features.size(0), width = weight.size(0), count = weight.size(1);
  const double* const f = features.const_data_ptr<double>();
  const double* const mu = reference.const_data_ptr<double>();
  const double* const w = weight.const_data_ptr<double>();
  const double* const start = base.const_data_ptr<double>();
  at::Tensor result = at::empty({rows, count}, at::kDouble);
  double* const z = result.mutable_data_ptr<double>();
  run_queue(queue_threads(), rows, 0, [&](int64_t b, float*) {
    double* const out = z + b * count;
    std::copy(start, start + count, out);
    for (int64_t j = 0; j < width; ++j) {
      const double deviation = f[b * width + j] - mu[j];
      for (int64_t m = 0; m < count; ++m) out[m] += deviation * w[j * count + m];
    }
  });
  return result;
}

}  // namespace headkit
