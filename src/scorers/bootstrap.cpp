#include "headkit/scorers/bootstrap.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <random>
#include <vector>

#include "headkit/core/error.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr auto kOperation = "bootstrap";

at::Tensor checked_table(const at::Tensor& values) {
  HEADKIT_CHECK(values.defined() && (values.dim() == 1 || values.dim() == 2), kOperation,
                "values of shape [examples] or [seeds, examples]", "shape ",
                values.defined() ? values.sizes() : at::IntArrayRef());
  HEADKIT_CHECK(values.numel() > 0, kOperation, "at least one value", "shape ", values.sizes());
  const at::Tensor table = values.detach().to(at::kCPU, at::kDouble);
  HEADKIT_CHECK(table.isfinite().all().item<bool>(), kOperation, "finite values",
                "NaN or infinity");
  return table.dim() == 1 ? table.unsqueeze(0) : table;
}

}  // namespace

BootstrapInterval bootstrap_mean(const at::Tensor& values, BootstrapUnit unit,
                                 const BootstrapOptions& options) {
  HEADKIT_CHECK(options.confidence > 0 && options.confidence < 1, kOperation,
                "a confidence level in (0, 1)", options.confidence);
  HEADKIT_CHECK(options.resamples > 0, kOperation, "at least one resample", options.resamples);
  const at::Tensor table = checked_table(values);
  const int64_t seeds = table.size(0), examples = table.size(1);
  HEADKIT_CHECK(unit == BootstrapUnit::kExamples || seeds > 1, kOperation,
                "values of at least two seeds for an interval over seeds", seeds);

  std::mt19937_64 random(options.seed);
  const int64_t rows_once = rows_at_once(std::max(seeds, examples));
  std::vector<at::Tensor> means;
  for (int64_t done = 0; done < options.resamples; done += rows_once) {
    const int64_t rows = std::min(rows_once, options.resamples - done);
    at::Tensor by_seed = table.mean(1).expand({rows, seeds});
    if (unit != BootstrapUnit::kSeeds) {
      const at::Tensor counts = draw_counts(random, rows, examples);
      by_seed = at::mm(counts, table.t()) / static_cast<double>(examples);
    }
    if (unit != BootstrapUnit::kExamples) by_seed = by_seed * draw_counts(random, rows, seeds);
    means.push_back(by_seed.sum(1) / static_cast<double>(seeds));
  }
  const at::Tensor sorted = std::get<0>(at::cat(means).sort());
  const double tail = (1 - options.confidence) / 2;
  BootstrapInterval interval;
  interval.mean = table.mean().item<double>();
  interval.lower = percentile(sorted, tail).item<double>();
  interval.upper = percentile(sorted, 1 - tail).item<double>();
  if (options.resamples > 1) interval.standard_error = sorted.std().item<double>();
  const int64_t least =
      std::min(sorted.le(0).sum().item<int64_t>(), sorted.ge(0).sum().item<int64_t>());
  interval.p_value = std::min(
      1.0, 2 * static_cast<double>(least + 1) / static_cast<double>(options.resamples + 1));
  return interval;
}

}  // namespace headkit
