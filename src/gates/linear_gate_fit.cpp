#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

#include "gates/early_record.h"
#include "gates/ridge_regression.h"
#include "headkit/core/error.h"
#include "headkit/gates/linear_gate.h"
#include "headkit/gates/pooled_state.h"

namespace headkit {
namespace {

constexpr auto kOperation = "fit_linear_gate";

// |dL_b / dg_h| at the dense point, double [B, L, H].
at::Tensor gate_gradient(GatedModel& model, const ModelState& state, const Batch& batch,
                         const Objective& objective, const at::Tensor& dropped_output) {
  const HeadLayout layout = model.layout();
  at::Tensor dense;
  if (objective.needs_dense()) {
    const at::NoGradGuard no_grad;
    dense = model.head(model.run(state, 0, layout.layers, {}));
  }
  const at::AutoGradMode with_grad(true);
  GateSet gates;
  gates.heads =
      at::ones({state.hidden.size(0), layout.layers, layout.heads}, gate_options(state.hidden))
          .set_requires_grad(true);
  gates.dropped_output = fitting_dropped_output(dropped_output, state.hidden);
  const at::Tensor output = model.head(model.run(state, 0, layout.layers, gates));
  const at::Tensor loss = objective.loss(output, batch, dense).sum();
  const at::Tensor gradient = torch::autograd::grad({loss}, {gates.heads}, {}, std::nullopt, false,
                                                    /*allow_unused=*/true)[0];
  if (!gradient.defined()) return at::zeros(gates.heads.sizes(), at::kDouble);
  return gradient.abs().to(at::kCPU, at::kDouble);
}

// Static scores as logits, in the unit of log importance. Scores that cannot be logged (signed
// ones) are standardised to the spread of the log importances.
at::Tensor static_logits(const HeadScores& scores, const at::Tensor& importance,
                         const at::Tensor& log_mean, const at::Tensor& present, double epsilon) {
  if (!scores.values.defined()) return (importance.mean(0) + epsilon).log();
  scores.check(kOperation);
  HEADKIT_CHECK(scores.values.sizes() == present.sizes(), kOperation,
                c10::str("scores of shape ", present.sizes()), "shape ", scores.values.sizes());
  const at::Tensor known = scores.values.masked_select(present);
  if ((known > 0).all().item<bool>()) {
    return scores.values.clamp_min(known.min().item<double>()).log();
  }
  const double spread = log_mean.masked_select(present).std().item<double>();
  return (scores.values - known.mean()) / known.std().clamp_min(1e-12) * spread;
}

}  // namespace

FittedLinearGate fit_linear_gate(GatedModel& model, const DataSource& train,
                                 const DataSource& calibration, const Objective& objective,
                                 const LinearGateFit& options) {
  const HeadLayout layout = model.layout();
  const at::Tensor present = model.heads().keep();
  HEADKIT_CHECK(!objective.stationary_at_dense(), kOperation,
                "an objective with a gradient at the dense model, for example cross_entropy",
                objective.name(), ", whose first-order scores are all exactly zero there");
  HEADKIT_CHECK(options.mean_heads > 0 && options.mean_heads <= layout.total_heads(), kOperation,
                c10::str("mean_heads in (0, ", layout.total_heads(), "]"), options.mean_heads);
  HEADKIT_CHECK(options.settled_share >= 0 && options.settled_share < 0.5, kOperation,
                "settled_share in [0, 0.5)", options.settled_share);
  HEADKIT_CHECK(std::isfinite(options.ridge) && options.huber >= 0, kOperation,
                "a finite ridge and huber >= 0", options.ridge, " and ", options.huber);

  int64_t done = 0;
  const auto train_batches = train.size(), calibration_batches = calibration.size();
  const int64_t total =
      train_batches && calibration_batches ? *train_batches + *calibration_batches : -1;
  const auto step = [&] {
    ++done;
    if (options.progress) options.progress(done, total);
  };
  std::vector<at::Tensor> features_of, importance_of;
  train.for_each([&](const Batch& batch) {
    const at::NoGradGuard no_grad;
    const ModelState state = model.embed(batch);
    features_of.push_back(pooled_state(kOperation, state.hidden, state.attention_mask));
    importance_of.push_back(gate_gradient(model, state, batch, objective, options.dropped_output));
    step();
  });
  HEADKIT_CHECK(!features_of.empty(), kOperation, "training examples", "none");
  const at::Tensor features = at::cat(features_of);
  const at::Tensor importance = at::cat(importance_of);
  const int64_t samples = features.size(0);
  HEADKIT_CHECK(samples > 1, kOperation, "at least two training examples", samples);
  HEADKIT_CHECK(importance.isfinite().all().item<bool>(), kOperation, "finite gate gradients",
                "NaN or infinity");

  // eps keeps heads that happen not to matter for an input from dominating the log scale.
  const double epsilon = std::max(1e-300, 0.01 * importance.mean().item<double>());
  const at::Tensor log_importance = (importance + epsilon).log();
  const at::Tensor alive =
      log_importance.reshape({samples, -1}).index_select(1, present.flatten().nonzero().flatten());
  const at::Tensor relative = alive - alive.mean(1, true);
  const at::Tensor mean_feature = features.mean(0);
  const RidgeRegression regression = ridge_regression(
      features - mean_feature, relative - relative.mean(0), options.ridge, options.huber);

  LinearGateSettings settings;
  settings.weight = at::zeros({layout.total_heads(), layout.model_dim}, at::kDouble);
  settings.weight.index_copy_(0, present.flatten().nonzero().flatten(), regression.weight);
  settings.weight = settings.weight.reshape({layout.layers, layout.heads, layout.model_dim});
  settings.reference = mean_feature;
  settings.static_logits =
      static_logits(options.scores, importance, log_importance.mean(0), present, epsilon);
  settings.static_logits =
      settings.static_logits - settings.static_logits.masked_select(present).mean();
  settings.fixed =
      at::zeros({layout.layers, layout.heads}, at::kChar).masked_fill(present.logical_not(), -1);
  settings.min_heads = options.min_heads;
  settings.dropped_output = options.dropped_output;
  const LinearGate draft(settings);

  std::vector<at::Tensor> logits_of;
  calibration.for_each([&](const Batch& batch) {
    const at::NoGradGuard no_grad;
    const ModelState state = model.embed(batch);
    logits_of.push_back(draft.logits(state.hidden, state.attention_mask));
    step();
  });
  HEADKIT_CHECK(!logits_of.empty(), kOperation, "calibration examples", "none");
  const at::Tensor logits = at::cat(logits_of);

  LinearGate gate = draft.with_mean_heads(logits, options.mean_heads);
  const at::Tensor share = gate.open_heads(logits).mean(0);
  settings.fixed = settings.fixed.masked_fill(share <= options.settled_share, -1)
                       .masked_fill(share >= 1 - options.settled_share, 1);
  settings.calibration = "mean of " + std::to_string(options.mean_heads) + " heads over " +
                         std::to_string(logits.size(0)) + " examples";
  gate = LinearGate(settings).with_mean_heads(logits, options.mean_heads);

  FittedLinearGate fitted;
  const at::Tensor dynamic =
      logits.reshape({logits.size(0), -1}).index_select(1, present.flatten().nonzero().flatten());
  const double all_variance = dynamic.var(false).item<double>();
  fitted.report.fitted_examples = samples;
  fitted.report.calibration_examples = logits.size(0);
  fitted.report.ridge = regression.ridge;
  fitted.report.explained = regression.explained;
  fitted.report.input_variance =
      all_variance > 0 ? dynamic.var(0, false).mean().item<double>() / all_variance : 0;
  fitted.report.mean_heads =
      gate.open_heads(logits).sum().item<double>() / static_cast<double>(logits.size(0));
  fitted.report.contested = (gate.settings().fixed == 0).sum().item<int64_t>();
  fitted.gate = std::make_shared<LinearGate>(std::move(gate));
  return fitted;
}

}  // namespace headkit
