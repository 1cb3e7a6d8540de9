#include "operators/outer_sums.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "operators/float32.h"
#include "operators/task_queue.h"

namespace headkit {

OuterSums::OuterSums(const UnitGates& gates, const at::Tensor& grad)
    : gates_(gates), batch_(grad.size(0)), width_(grad.size(2)), sums_(batch_ * width_, 0.0) {
  const at::Tensor dy = in_float32(grad);
  const int64_t length = grad.size(1);
  run_queue(queue_threads(), batch_, 0, [&](int64_t b, float*) {
    const float* row = dy.const_data_ptr<float>() + b * length * width_;
    double* sum = sums_.data() + b * width_;
    for (int64_t t = 0; t < length; ++t, row += width_) {
      for (int64_t d = 0; d < width_; ++d) sum[d] += row[d];
    }
  });
}

at::Tensor OuterSums::bias() const {
  std::vector<double> sum(width_, 0.0);
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t d = 0; d < width_; ++d) sum[d] += sums_[b * width_ + d];
  }
  return to_tensor(sum, {width_});
}

at::Tensor OuterSums::dropped_output() const {
  const at::Tensor gate = by_sample();
  std::vector<double> sum(gates_.units * width_, 0.0);
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t unit = 0; unit < gates_.units; ++unit) {
      const double share = 1.0 - gate.const_data_ptr<float>()[b * gates_.units + unit];
      if (share == 0.0) continue;
      for (int64_t d = 0; d < width_; ++d) {
        sum[unit * width_ + d] += share * sums_[b * width_ + d];
      }
    }
  }
  return to_tensor(sum, {gates_.units, width_});
}

at::Tensor OuterSums::gate(const at::Tensor& of_units) const {
  const bool shared = gates_.gate.dim() == 1;
  const at::Tensor dropped = in_float32(gates_.dropped_output), gate = by_sample();
  std::vector<double> sum(shared ? gates_.units : batch_ * gates_.units, 0.0);
  for (int64_t b = 0; b < batch_; ++b) {
    for (int64_t unit = 0; unit < gates_.units; ++unit) {
      const int64_t place = b * gates_.units + unit;
      double value = of_units.const_data_ptr<float>()[place];
      const bool open = !gates_.skip || gate.const_data_ptr<float>()[place] != 0.0f;
      if (dropped.defined() && open) {
        const float* added = dropped.const_data_ptr<float>() + unit * width_;
        for (int64_t d = 0; d < width_; ++d) value -= added[d] * sums_[b * width_ + d];
      }
      sum[shared ? unit : place] += value;
    }
  }
  return shared ? to_tensor(sum, {gates_.units}) : to_tensor(sum, {batch_, gates_.units});
}

at::Tensor OuterSums::by_sample() const {
  return in_float32(gates_.gate.expand({batch_, gates_.units}));
}

at::Tensor OuterSums::to_tensor(const std::vector<double>& values, at::IntArrayRef shape) const {
  at::Tensor result = at::empty(shape, at::kFloat);
  std::transform(values.begin(), values.end(), result.mutable_data_ptr<float>(),
                 [](double value) { return static_cast<float>(value); });
  return result;
}

}  // namespace headkit
