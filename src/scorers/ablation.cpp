#include "headkit/scorers/ablation.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <vector>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "ablation";
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

DenseRun run_dense(GatedModel& model, const Batch& batch, const Objective& objective,
                   int64_t layers) {
  DenseRun dense;
  ModelState state = model.embed(batch);
  for (int64_t layer = 0; layer < layers; ++layer) {
    dense.inputs.push_back(state);
    state = model.run(state, layer, layer + 1, {});
  }
  dense.output = model.head(state);
  dense.losses =
      checked_losses(kName, objective.loss(dense.output, batch, dense.output), batch_size(batch));
  dense.predictions = predictions(dense.output, batch);
  return dense;
}

}  // namespace

HeadScores AblationScorer::score(GatedModel& model, const DataSource& data,
                                 const Objective& objective, const ScoreOptions& options) const {
  check_score_options(options);
  const auto mode = model.evaluating();
  const c10::NoGradGuard no_grad;
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();

  ScoreSample sample;
  HeadScores scores;
  scores.metric = kName;
  scores.objective = objective.name();
  at::Tensor flips = at::zeros({layout.layers, layout.heads}, at::kLong);
  bool labelled = false;
  int64_t batches = 0;
  data.for_each([&](const Batch& batch) {
    const int64_t examples = batch_size(batch);
    if (examples > 0) {
      const DenseRun dense = run_dense(model, batch, objective, layout.layers);
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
          gates.heads =
              at::ones({variants, examples, layout.layers, layout.heads},
                       hidden.options().dtype(hidden.scalar_type() == at::kDouble ? at::kDouble
                                                                                  : at::kFloat));
          for (int64_t i = 0; i < variants; ++i) {
            gates.heads[i].select(1, layer).select(1, heads[first + i]).zero_();
          }
          gates.heads = gates.heads.flatten(0, 1);
          if (options.dropped_output.defined()) {
            gates.dropped_output = options.dropped_output.to(hidden.options());
          }
          const ModelState start = model.select(dense.inputs[layer], index);
          const at::Tensor output = model.head(model.run(start, layer, layout.layers, gates));
          const Batch repeated = select_examples(batch, index);
          const at::Tensor dense_output =
              dense.output.index_select(0, index.to(dense.output.device()));
          const at::Tensor losses =
              checked_losses(kName, objective.loss(output, repeated, dense_output),
                             variants * examples)
                  .reshape({variants, examples});
          const at::Tensor decided = predictions(output, repeated);
          for (int64_t i = 0; i < variants; ++i) {
            deltas.select(1, layer).select(1, heads[first + i]).copy_(losses[i] - dense.losses);
            if (!decided.defined()) continue;
            labelled = true;
            flips[layer][heads[first + i]] +=
                decided.reshape({variants, examples})[i].ne(dense.predictions).sum();
          }
        }
      }
      sample.add(deltas, at::ones({examples}, at::kDouble));
      scores.samples += examples;
    }
    if (options.progress) options.progress(++batches, data.size().value_or(-1));
  });
  HEADKIT_CHECK(!sample.empty(), kName, "data with at least one example", "none");
  if (sample.all_zero()) fail_all_zero(kName, objective);

  sample.summarise(options, scores);
  Json settings = {{"normalization", options.normalization},
                   {"bootstrap", options.bootstrap},
                   {"compensated", options.dropped_output.defined()}};
  if (labelled) {
    Json rows = Json::array();
    for (int64_t layer = 0; layer < layout.layers; ++layer) {
      const int64_t* row = flips.const_data_ptr<int64_t>() + layer * layout.heads;
      rows.push_back(std::vector<int64_t>(row, row + layout.heads));
    }
    settings["flips"] = rows;
  }
  scores.settings = settings.dump();
  return scores;
}

}  // namespace headkit
