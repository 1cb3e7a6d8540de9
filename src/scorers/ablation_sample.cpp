#include "scorers/ablation_sample.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "distributed/measured_walk.h"
#include "headkit/core/error.h"
#include "scorers/layer_variants.h"

namespace headkit {
namespace {

// Heads that are closed to try a head: itself, or all others of its layer.
std::vector<int64_t> closed_for(int64_t head, const std::vector<int64_t>& heads, bool all_but_one) {
  if (!all_but_one) return {head};
  std::vector<int64_t> others;
  std::copy_if(heads.begin(), heads.end(), std::back_inserter(others),
               [head](int64_t other) { return other != head; });
  return others;
}

}  // namespace

AblationSample ablation_sample(const char* metric, GatedModel& model, const DataSource& data,
                               const Objective& objective, const AblationRun& run) {
  const auto mode = model.evaluating();
  const c10::NoGradGuard no_grad;
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  std::vector<LayerVariant> variants;
  std::vector<int64_t> places;  // in [L * H]: the head that each variant tries
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    const std::vector<int64_t> heads = present.layer_heads(layer);
    for (int64_t head : heads) {
      variants.push_back({layer, closed_for(head, heads, run.all_but_one)});
      places.push_back(layer * layout.heads + head);
    }
  }
  const at::Tensor place = at::tensor(places, at::kLong);

  AblationSample sample;
  sample.flips = at::zeros({layout.layers, layout.heads}, at::kLong);
  bool labelled = false;
  // Deltas [examples, L * H], and flips of each variant or none.
  const auto measure = [&](const Batch& batch, const at::Tensor& dropped) -> Measured {
    const VariantLosses losses = variant_losses(metric, model, batch, objective, variants, dropped);
    at::Tensor deltas = at::zeros({batch_size(batch), layout.layers * layout.heads}, at::kDouble);
    deltas.index_copy_(1, place, (losses.closed - losses.open).t());
    return {deltas, losses.flips};
  };
  const auto measure_batch = [&](const Batch& batch, int64_t first) -> Measured {
    if (!run.dropped_of_example) return measure(batch, run.dropped_output);
    std::vector<at::Tensor> deltas;
    at::Tensor flips;
    for (int64_t i = 0; i < batch_size(batch); ++i) {
      const Measured one =
          measure(select_examples(batch, at::arange(i, i + 1)), run.dropped_of_example(first + i));
      deltas.push_back(one[0]);
      if (one[1].defined()) flips = flips.defined() ? flips + one[1] : one[1];
    }
    return {at::cat(deltas), flips};
  };
  const auto take = [&](const Batch& batch, const Measured& measured) {
    const int64_t examples = batch_size(batch);
    if (measured[1].defined()) {
      labelled = true;
      sample.flips.flatten().index_add_(0, place, measured[1]);
    }
    sample.deltas.add(measured[0].reshape({examples, layout.layers, layout.heads}),
                      at::ones({examples}, at::kDouble));
  };
  sample.examples = for_each_measured(metric, data, run.progress, measure_batch, take);
  HEADKIT_CHECK(!sample.deltas.empty(), metric, "data with at least one example", "none");
  if (!labelled) sample.flips = at::Tensor();
  return sample;
}

std::vector<std::vector<int64_t>> flip_rows(const at::Tensor& flips) {
  std::vector<std::vector<int64_t>> rows;
  for (int64_t layer = 0; layer < flips.size(0); ++layer) {
    const int64_t* row = flips.const_data_ptr<int64_t>() + layer * flips.size(1);
    rows.emplace_back(row, row + flips.size(1));
  }
  return rows;
}

}  // namespace headkit
