#include "headkit/scorers/gate_gradient.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "gate_gradient";

void check_options(const ScoreOptions& options, const Objective& objective) {
  check_score_options(options);
  const std::string& unit = options.granularity;
  HEADKIT_CHECK(unit == "token" || unit == "example" || unit == "batch" || unit == "signed", kName,
                "granularity token, example, batch or signed", "'", unit, "'");
  HEADKIT_CHECK(options.denominator == "examples" || options.denominator == "tokens", kName,
                "denominator examples or tokens", "'", options.denominator, "'");
  HEADKIT_CHECK(!objective.stationary_at_dense(), kName,
                "an objective with a slope at the dense model (cross_entropy, margin)",
                objective.name(),
                ", which has its minimum there: every first-order score is exactly 0. Use metric "
                "ablation, or a task loss");
}

// dL_x/dg at gates 1: [B, L, T, H] by token, else [B, L, H]; double, CPU.
at::Tensor gate_gradients(GatedModel& model, const ModelState& state, const Objective& objective,
                          const HeadLayout& layout, const at::Tensor& dropped_output,
                          bool by_token) {
  const int64_t examples = state.hidden.size(0);
  std::vector<int64_t> shape{examples, layout.layers, layout.heads};
  if (by_token) shape.insert(shape.begin() + 2, state.hidden.size(1));
  const at::ScalarType dtype = state.hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;

  const c10::AutoGradMode grad_on(true);
  GateSet gates;
  gates.heads = at::ones(shape, state.hidden.options().dtype(dtype)).set_requires_grad(true);
  if (dropped_output.defined()) gates.dropped_output = dropped_output.to(state.hidden.options());
  const at::Tensor output = model.head(model.run(state, 0, layout.layers, gates));
  const at::Tensor dense = objective.needs_dense() ? output.detach() : at::Tensor();
  const at::Tensor losses = objective.loss(output, state.batch, dense);
  checked_losses(kName, losses, examples);
  HEADKIT_CHECK_RUNTIME(losses.requires_grad(), kName, "a loss that depends on the gates",
                        "one without a gradient: does the model run under no_grad or detach?");
  const auto gradients = torch::autograd::grad({losses.sum()}, {gates.heads}, {},
                                               /*retain_graph=*/false, /*create_graph=*/false,
                                               /*allow_unused=*/true);
  HEADKIT_CHECK_RUNTIME(gradients[0].defined(), kName, "a gradient for the gates", "none");
  const at::Tensor values = gradients[0].detach().to(at::kCPU, at::kDouble);
  HEADKIT_CHECK_RUNTIME(values.isfinite().all().item<bool>(), kName, "finite gate gradients",
                        "NaN or infinity; score in float32 or scale the inputs");
  return values;
}

}  // namespace

HeadScores GateGradientScorer::score(GatedModel& model, const DataSource& data,
                                     const Objective& objective,
                                     const ScoreOptions& options) const {
  check_options(options, objective);
  const auto mode = model.evaluating();
  const HeadLayout layout = model.layout();
  const at::Tensor present = model.heads().keep().to(at::kDouble);
  const bool by_token = options.granularity == "token";
  const bool by_batch = options.granularity == "batch";

  ScoreSample sample;
  HeadScores scores;
  scores.metric = kName;
  scores.objective = objective.name();
  int64_t batches = 0;
  int64_t tokens = 0;
  int64_t largest = 0;
  data.for_each([&](const Batch& batch) {
    const int64_t examples = batch_size(batch);
    if (examples > 0) {
      const ModelState state = [&] {
        const c10::NoGradGuard no_grad;
        return model.embed(batch);
      }();
      at::Tensor values =
          gate_gradients(model, state, objective, layout, options.dropped_output, by_token);
      at::Tensor valid = at::ones({examples, state.hidden.size(1)}, at::kDouble);
      if (state.attention_mask.defined()) {
        valid = state.attention_mask.to(at::kCPU, at::kDouble);
      }
      if (by_token) values = (values.abs() * valid.unsqueeze(1).unsqueeze(3)).sum(2);
      if (options.granularity == "example") values = values.abs();
      const at::Tensor length = valid.sum(1);
      at::Tensor weights = options.denominator == "tokens" ? length : at::ones_like(length);
      if (by_batch) {
        values = values.sum(0, /*keepdim=*/true).abs();
        weights = weights.sum(0, /*keepdim=*/true);
      }
      sample.add(values * present, weights);
      scores.samples += examples;
      tokens += length.sum().item<int64_t>();
      largest = std::max(largest, examples);
    }
    if (options.progress) options.progress(++batches, data.size().value_or(-1));
  });
  HEADKIT_CHECK(!sample.empty(), kName, "data with at least one example", "none");
  if (sample.all_zero()) fail_all_zero(kName, objective);

  sample.summarise(options, scores);
  Json settings = {{"granularity", options.granularity},
                   {"normalization", options.normalization},
                   {"denominator", options.denominator},
                   {"bootstrap", options.bootstrap},
                   {"tokens", tokens},
                   {"compensated", options.dropped_output.defined()}};
  if (by_batch) settings["batch_size"] = largest;
  scores.settings = settings.dump();
  return scores;
}

}  // namespace headkit
