#include "scorers/ablation_sample.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr int64_t kTokensAtOnce = 16384;  // bounds the memory of one gated forward

// Class decisions, where the output holds logits for labelled examples; else undefined.
at::Tensor predictions(const at::Tensor& output, const Batch& batch) {
  const bool classifies = batch.count("labels") > 0 && output.dim() == 2 && output.size(1) > 1;
  return classifies ? output.argmax(1).to(at::kCPU) : at::Tensor();
}

struct DenseRun {
  std::vector<ModelState> inputs;  // of every layer
  at::Tensor output, losses, predictions;
};

DenseRun run_dense(const char* metric, GatedModel& model, const Batch& batch,
                   const Objective& objective, int64_t layers) {
  DenseRun dense;
  ModelState state = model.embed(batch);
  for (int64_t layer = 0; layer < layers; ++layer) {
    dense.inputs.push_back(state);
    state = model.run(state, layer, layer + 1, {});
  }
  dense.output = model.head(state);
  dense.losses =
      checked_losses(metric, objective.loss(dense.output, batch, dense.output), batch_size(batch));
  dense.predictions = predictions(dense.output, batch);
  return dense;
}

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

  AblationSample sample;
  sample.flips = at::zeros({layout.layers, layout.heads}, at::kLong);
  bool labelled = false;
  const auto visit = [&](const Batch& batch) {
    const int64_t examples = batch_size(batch);
    const at::Tensor dropped =
        run.dropped_of_example ? run.dropped_of_example(sample.examples) : run.dropped_output;
    const DenseRun dense = run_dense(metric, model, batch, objective, layout.layers);
    const at::Tensor& hidden = dense.inputs.front().hidden;
    const int64_t variants_at_once =
        std::max<int64_t>(kTokensAtOnce / std::max<int64_t>(examples * hidden.size(1), 1), 1);
    at::Tensor deltas = at::zeros({examples, layout.layers, layout.heads}, at::kDouble);
    for (int64_t layer = 0; layer < layout.layers; ++layer) {
      const std::vector<int64_t> heads = present.layer_heads(layer);
      const auto count = static_cast<int64_t>(heads.size());
      for (int64_t first = 0; first < count; first += variants_at_once) {
        const int64_t variants = std::min(variants_at_once, count - first);
        const at::Tensor index = at::arange(examples).repeat({variants});
        GateSet gates;
        gates.heads = at::ones(
            {variants, examples, layout.layers, layout.heads},
            hidden.options().dtype(hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
        for (int64_t i = 0; i < variants; ++i) {
          for (int64_t head : closed_for(heads[first + i], heads, run.all_but_one)) {
            gates.heads[i].select(1, layer).select(1, head).zero_();
          }
        }
        gates.heads = gates.heads.flatten(0, 1);
        if (dropped.defined()) gates.dropped_output = dropped.to(hidden.options());
        const ModelState start = model.select(dense.inputs[layer], index);
        const at::Tensor output = model.head(model.run(start, layer, layout.layers, gates));
        const Batch repeated = select_examples(batch, index);
        const at::Tensor dense_output =
            dense.output.index_select(0, index.to(dense.output.device()));
        const at::Tensor losses =
            checked_losses(metric, objective.loss(output, repeated, dense_output),
                           variants * examples)
                .reshape({variants, examples});
        const at::Tensor decided = predictions(output, repeated);
        for (int64_t i = 0; i < variants; ++i) {
          deltas.select(1, layer).select(1, heads[first + i]).copy_(losses[i] - dense.losses);
          if (!decided.defined()) continue;
          labelled = true;
          sample.flips[layer][heads[first + i]] +=
              decided.reshape({variants, examples})[i].ne(dense.predictions).sum();
        }
      }
    }
    sample.deltas.add(deltas, at::ones({examples}, at::kDouble));
    sample.examples += examples;
  };
  int64_t batches = 0;
  data.for_each([&](const Batch& batch) {
    const int64_t examples = batch_size(batch);
    if (run.dropped_of_example) {
      for (int64_t i = 0; i < examples; ++i) visit(select_examples(batch, at::arange(i, i + 1)));
    } else if (examples > 0) {
      visit(batch);
    }
    if (run.progress) run.progress(++batches, data.size().value_or(-1));
  });
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
