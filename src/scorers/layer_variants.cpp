#include "scorers/layer_variants.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "models/dense_output.h"
#include "models/prefix_runs.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

// Class decisions, where the output holds logits for labelled examples; else undefined.
at::Tensor predictions(const at::Tensor& output, const Batch& batch) {
  const bool classifies = batch.count("labels") > 0 && output.dim() == 2 && output.size(1) > 1;
  return classifies ? output.argmax(1).to(at::kCPU) : at::Tensor();
}

// Gates [variants * examples, L, H] of variants first .. last-1.
at::Tensor gates_of(const std::vector<LayerVariant>& variants, int64_t first, int64_t last,
                    int64_t examples, const HeadLayout& layout, const at::TensorOptions& options) {
  at::Tensor gates = at::ones({last - first, examples, layout.layers, layout.heads}, options);
  for (int64_t i = first; i < last; ++i) {
    const LayerVariant& variant = variants[static_cast<size_t>(i)];
    for (int64_t head : variant.closed) {
      gates[i - first].select(1, variant.layer).select(1, head).zero_();
    }
  }
  return gates.flatten(0, 1);
}

}  // namespace

VariantLosses variant_losses(const char* metric, GatedModel& model, const Batch& batch,
                             const Objective& objective, const std::vector<LayerVariant>& variants,
                             const at::Tensor& dropped_output) {
  const c10::NoGradGuard no_grad;
  const HeadLayout layout = model.layout();
  const int64_t examples = batch_size(batch);
  const PrefixRuns runs(model, batch, {});
  const at::Tensor& output = runs.output();
  const at::Tensor dense = dense_output(model, objective, runs.before(0), output);
  const at::Tensor decided = predictions(output, batch);
  const auto count = static_cast<int64_t>(variants.size());
  VariantLosses losses;
  losses.open = checked_losses(metric, objective.loss(output, batch, dense), examples);
  losses.closed = at::empty({count, examples}, at::kDouble);
  if (decided.defined()) losses.flips = at::zeros({count}, at::kLong);

  const int64_t at_once = runs.copies_at_once();
  for (int64_t first = 0, last = 0; first < count; first = last) {
    const int64_t layer = variants[static_cast<size_t>(first)].layer;
    while (last < count && last - first < at_once &&
           variants[static_cast<size_t>(last)].layer == layer) {
      ++last;
    }
    const at::Tensor index = runs.rows(last - first);
    const at::Tensor heads = gates_of(variants, first, last, examples, layout, runs.gate_options());
    const at::Tensor changed = runs.rerun(layer, runs.gates(heads, dropped_output));
    const Batch repeated = select_examples(batch, index);
    const at::Tensor compared =
        dense.defined() ? dense.index_select(0, index.to(dense.device())) : at::Tensor();
    losses.closed.slice(0, first, last)
        .copy_(checked_losses(metric, objective.loss(changed, repeated, compared),
                              (last - first) * examples)
                   .reshape({last - first, examples}));
    if (!decided.defined()) continue;
    losses.flips.slice(0, first, last)
        .copy_(predictions(changed, repeated)
                   .reshape({last - first, examples})
                   .ne(decided.unsqueeze(0))
                   .sum(1));
  }
  return losses;
}

}  // namespace headkit
