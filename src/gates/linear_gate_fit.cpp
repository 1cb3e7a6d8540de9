#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "distributed/measured_walk.h"
#include "gates/gate_gradients.h"
#include "gates/head_rule.h"
#include "gates/rank_loss.h"
#include "gates/ridge_regression.h"
#include "headkit/core/error.h"
#include "headkit/gates/layer_gate.h"
#include "headkit/gates/linear_gate.h"

namespace headkit {
namespace {

constexpr int64_t kCalibrationRounds = 4;

// Static scores as logits, in the unit of log importance. Scores that cannot be logged (signed
// ones) are standardised to the spread of the log importances.
at::Tensor static_logits(const char* operation, const HeadScores& scores,
                         const at::Tensor& importance, const at::Tensor& log_mean,
                         const at::Tensor& present, double epsilon) {
  if (!scores.values.defined()) return (importance.mean(0) + epsilon).log();
  scores.check(operation);
  HEADKIT_CHECK(scores.values.sizes() == present.sizes(), operation,
                c10::str("scores of shape ", present.sizes()), "shape ", scores.values.sizes());
  const at::Tensor known = scores.values.masked_select(present);
  if ((known > 0).all().item<bool>()) {
    return scores.values.clamp_min(known.min().item<double>()).log();
  }
  const double spread = log_mean.masked_select(present).std().item<double>();
  return (scores.values - known.mean()) / known.std().clamp_min(1e-12) * spread;
}

void check_options(const char* operation, GatedModel& model, const Objective& objective,
                   const LinearGateFit& options) {
  const int64_t heads = model.layout().total_heads();
  check_has_gradient(operation, objective);
  HEADKIT_CHECK(options.mean_heads > 0 && options.mean_heads <= static_cast<double>(heads),
                operation, c10::str("mean_heads in (0, ", heads, "]"), options.mean_heads);
  HEADKIT_CHECK(options.settled_share >= 0 && options.settled_share < 0.5, operation,
                "settled_share in [0, 0.5)", options.settled_share);
  HEADKIT_CHECK(std::isfinite(options.ridge) && options.huber >= 0, operation,
                "a finite ridge and huber >= 0", options.ridge, " and ", options.huber);
  HEADKIT_CHECK(options.rank_weight >= 0 && std::isfinite(options.rank_weight), operation,
                "a finite rank_weight >= 0", options.rank_weight);
}

// Counts the batches of all passes.
class Steps {
 public:
  Steps(const LinearGateFit& options, const DataSource& train, const DataSource& calibration)
      : told_(options.progress) {
    if (train.size() && calibration.size()) total_ = *train.size() + *calibration.size();
  }
  void one() {
    ++done_;
    if (told_) told_(done_, total_);
  }

 private:
  Progress told_;
  int64_t done_ = 0, total_ = -1;
};

bool needs_probe(const std::vector<std::string>& features) {
  return std::any_of(features.begin(), features.end(),
                     [](const std::string& name) { return name != "log_length"; });
}

// Probes before these layers, or none where no scalar needs one.
std::vector<LinearProbe> probes_for(GatedModel& model, const DataSource& train,
                                    const Objective& objective, const LinearGateFit& options,
                                    const std::vector<int64_t>& layers) {
  std::vector<LinearProbe> probes;
  if (!needs_probe(options.features)) return probes;
  const auto& names = options.features;
  LinearProbesFit fit{.layers = layers, .labels_of_data = options.labels_of_data};
  fit.task = std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return name == "margin" || name == "entropy";
  });
  if (std::find(names.begin(), names.end(), "log_loss") != names.end()) fit.objective = &objective;
  for (FittedProbe& fitted : fit_linear_probes(model, train, fit)) {
    probes.push_back(std::move(fitted.probe));
  }
  return probes;
}

// What one pass over the training examples shows.
struct Observed {
  std::vector<at::Tensor> features;  // of each observed layer, [N, D + S]
  at::Tensor importance;             // [N, L, H]
  at::Tensor log_importance;         // [N, L, H]
  at::Tensor target;                 // [N, L, H]: log importance relative to the input's own mean
  double epsilon = 0;
};

Observed observe(const char* operation, GatedModel& model, const DataSource& train,
                 const Objective& objective, const LinearGateFit& options,
                 const std::vector<LinearProbe>& probes, const std::vector<int64_t>& layers,
                 Steps& steps) {
  std::vector<std::vector<at::Tensor>> features(layers.size());
  std::vector<at::Tensor> importance;
  for (size_t i = 0; i < layers.size(); ++i) {
    check_scalar_features(operation, options.features, probes.empty() ? nullptr : &probes[i]);
  }
  // Features of every observed layer, then the importance.
  const auto measure = [&](const Batch& batch, int64_t) {
    const c10::NoGradGuard no_grad;
    Measured found(layers.size() + 1);
    found.back() = gate_gradients(model, model.embed(batch), batch, objective,
                                  options.dropped_output, {}, false, layers,
                                  [&](size_t i, const ModelState& at) {
                                    found[i] = gate_features(operation, options.features,
                                                             probes.empty() ? nullptr : &probes[i],
                                                             at.hidden, at.attention_mask);
                                  })
                       .heads;
    return found;
  };
  for_each_measured(operation, train, {}, measure, [&](const Batch&, const Measured& measured) {
    for (size_t i = 0; i < features.size(); ++i) features[i].push_back(measured[i]);
    importance.push_back(measured.back());
    steps.one();
  });
  HEADKIT_CHECK(!importance.empty(), operation, "training examples", "none");
  Observed observed;
  for (const auto& each : features) observed.features.push_back(at::cat(each));
  observed.importance = at::cat(importance);
  const int64_t samples = observed.importance.size(0);
  HEADKIT_CHECK(samples > 1, operation, "at least two training examples", samples);
  HEADKIT_CHECK(observed.importance.isfinite().all().item<bool>(), operation,
                "finite gate gradients", "NaN or infinity");
  // eps keeps heads that happen not to matter for an input from dominating the log scale.
  observed.epsilon = std::max(1e-300, 0.01 * observed.importance.mean().item<double>());
  observed.log_importance = (observed.importance + observed.epsilon).log();
  const at::Tensor there = model.heads().keep().flatten().nonzero().flatten();
  const at::Tensor own =
      observed.log_importance.reshape({samples, -1}).index_select(1, there).mean(1);
  observed.target = observed.log_importance - own.reshape({samples, 1, 1});
  return observed;
}

// Regression on features whose last `scalars` are of any unit: each gets the variance of the whole
// pooled state, so that the penalty treats it as a peer of the state, not of one of its dimensions.
// `groups` of the targets are ranked by `offset` [M] + what is fitted.
RidgeRegression scaled_regression(const at::Tensor& features, const at::Tensor& targets,
                                  int64_t scalars, const LinearGateFit& options,
                                  const std::vector<RankGroup>& groups, const at::Tensor& offset) {
  at::Tensor centred = features - features.mean(0);
  const int64_t width = features.size(1) - scalars;
  const at::Tensor variance = centred.square().mean(0);
  const double pooled = variance.slice(0, 0, width).sum().item<double>();
  at::Tensor factor = at::ones({features.size(1)}, at::kDouble);
  for (int64_t i = width; i < features.size(1); ++i) {
    const double own = variance[i].item<double>();
    if (own > 1e-20 && pooled > 0) factor[i] = std::sqrt(pooled / own);
  }
  FittedLoss rank{.weight = options.rank_weight, .curvature = RankLoss::kCurvature};
  std::optional<RankLoss> order;
  if (rank.weight > 0) {
    order.emplace(targets, groups);
    rank.gradient = [&](const at::Tensor& fitted) { return order->gradient(fitted + offset); };
  }
  RidgeRegression regression = ridge_regression(centred * factor, targets - targets.mean(0),
                                                options.ridge, options.huber, rank);
  regression.weight = regression.weight * factor;
  return regression;
}

at::Tensor centred_static_logits(const char* operation, const LinearGateFit& options,
                                 const Observed& observed, const at::Tensor& present) {
  const at::Tensor logits =
      static_logits(operation, options.scores, observed.importance, observed.log_importance.mean(0),
                    present, observed.epsilon);
  return logits - logits.masked_select(present).mean();
}

// The layers of some heads, given by their places [M] in [L, H], as groups to rank: of each so many
// on top as it runs of `mean_heads`, by its share of all heads that are there.
std::vector<RankGroup> layers_to_rank(const at::Tensor& present, const at::Tensor& there,
                                      double mean_heads) {
  std::vector<RankGroup> groups(static_cast<size_t>(present.size(0)));
  for (int64_t i = 0; i < there.size(0); ++i) {
    groups[static_cast<size_t>(there[i].item<int64_t>() / present.size(1))].columns.push_back(i);
  }
  const double share = mean_heads / static_cast<double>(present.sum().item<int64_t>());
  for (RankGroup& group : groups) {
    const auto count = static_cast<int64_t>(group.columns.size());
    group.top = std::clamp<int64_t>(std::llround(share * static_cast<double>(count)), 1,
                                    std::max<int64_t>(1, count - 1));
  }
  return groups;
}

// Heads that nearly no or nearly all inputs open are settled.
at::Tensor settled(const at::Tensor& fixed, const at::Tensor& open, double share) {
  const at::Tensor opened = open.mean(0);
  return at::where(fixed == 0,
                   at::zeros_like(fixed)
                       .masked_fill(opened <= share, -1)
                       .masked_fill(opened >= 1 - share, 1),
                   fixed)
      .contiguous();
}

std::string calibration_text(double mean_heads, int64_t examples) {
  return "mean of " + std::to_string(mean_heads) + " heads over " + std::to_string(examples) +
         " examples";
}

LinearGateReport report_on(const Observed& observed, const at::Tensor& logits,
                           const at::Tensor& open, const at::Tensor& fixed,
                           const at::Tensor& present) {
  LinearGateReport report;
  const at::Tensor there = present.flatten().nonzero().flatten();
  const at::Tensor dynamic = logits.reshape({logits.size(0), -1}).index_select(1, there);
  const double all_variance = dynamic.var(false).item<double>();
  report.fitted_examples = observed.importance.size(0);
  report.calibration_examples = logits.size(0);
  report.input_variance =
      all_variance > 0 ? dynamic.var(0, false).mean().item<double>() / all_variance : 0;
  report.mean_heads = open.sum().item<double>() / static_cast<double>(logits.size(0));
  report.contested = (fixed == 0).sum().item<int64_t>();
  return report;
}

}  // namespace

FittedLinearGate fit_linear_gate(GatedModel& model, const DataSource& train,
                                 const DataSource& calibration, const Objective& objective,
                                 const LinearGateFit& options) {
  constexpr auto kOperation = "fit_linear_gate";
  const HeadLayout layout = model.layout();
  const at::Tensor present = model.heads().keep();
  check_options(kOperation, model, objective, options);
  Steps steps(options, train, calibration);
  const std::vector<LinearProbe> probes = probes_for(model, train, objective, options, {0});
  const Observed observed =
      observe(kOperation, model, train, objective, options, probes, {0}, steps);
  const at::Tensor& features = observed.features.front();
  const int64_t samples = features.size(0), width = features.size(1);
  const at::Tensor there = present.flatten().nonzero().flatten();
  LinearGateSettings settings;
  settings.static_logits = centred_static_logits(kOperation, options, observed, present);
  const RidgeRegression regression =
      scaled_regression(features, observed.target.reshape({samples, -1}).index_select(1, there),
                        static_cast<int64_t>(options.features.size()), options,
                        layers_to_rank(present, there, options.mean_heads),
                        settings.static_logits.flatten().index_select(0, there));
  settings.weight = at::zeros({layout.total_heads(), width}, at::kDouble);
  settings.weight.index_copy_(0, there, regression.weight);
  settings.weight = settings.weight.reshape({layout.layers, layout.heads, width});
  settings.reference = features.mean(0);
  settings.fixed =
      at::zeros({layout.layers, layout.heads}, at::kChar).masked_fill(present.logical_not(), -1);
  settings.min_heads = options.min_heads;
  settings.dropped_output = options.dropped_output;
  settings.features = options.features;
  if (!probes.empty()) settings.probe = probes.front();
  const LinearGate draft(settings);

  std::vector<at::Tensor> logits_of;
  calibration.for_each([&](const Batch& batch) {
    const c10::NoGradGuard no_grad;
    const ModelState state = model.embed(batch);
    logits_of.push_back(draft.logits(state.hidden, state.attention_mask));
    steps.one();
  });
  HEADKIT_CHECK(!logits_of.empty(), kOperation, "calibration examples", "none");
  const at::Tensor logits = at::cat(logits_of);

  LinearGate gate = draft.with_mean_heads(logits, options.mean_heads);
  settings.fixed = settled(settings.fixed, gate.open_heads(logits), options.settled_share);
  settings.calibration = calibration_text(options.mean_heads, logits.size(0));
  gate = LinearGate(settings).with_mean_heads(logits, options.mean_heads);

  FittedLinearGate fitted;
  fitted.report =
      report_on(observed, logits, gate.open_heads(logits), gate.settings().fixed, present);
  fitted.report.ridge = regression.ridge;
  fitted.report.explained = regression.explained;
  fitted.gate = std::make_shared<LinearGate>(std::move(gate));
  return fitted;
}

LayerGate with_mean_heads(GatedModel& model, const DataSource& calibration, const LayerGate& gate,
                          double mean_heads) {
  constexpr auto kOperation = "layer_gate";
  const int64_t layers = gate.settings().fixed.size(0);
  double threshold = gate.settings().threshold, best = threshold, best_mean = -1, least = 1e300;
  for (int64_t round = 0; round <= kCalibrationRounds; ++round) {
    const LayerGate now = gate.with_threshold(threshold);
    const at::Tensor logits = layer_gate_logits(model, calibration, now);
    const double mean =
        now.open_heads(logits).sum().item<double>() / static_cast<double>(logits.size(0));
    const bool allowed = mean <= mean_heads + 1e-9;
    // The largest mean that is allowed; without one, the smallest.
    if (round > 0 && (allowed ? mean > best_mean : best_mean < 0 && mean < least)) {
      best = threshold;
      if (allowed) best_mean = mean;
    }
    if (!allowed) least = std::min(least, mean);
    if (round > 0 && allowed && mean > mean_heads - 0.01) break;
    threshold = threshold_for_mean(kOperation, logits, gate.settings().fixed,
                                   gate.settings().min_heads, layers, mean_heads);
  }
  return gate.with_threshold(best);
}

FittedLayerGate fit_layer_gate(GatedModel& model, const DataSource& train,
                               const DataSource& calibration, const Objective& objective,
                               const LinearGateFit& options) {
  constexpr auto kOperation = "fit_layer_gate";
  const HeadLayout layout = model.layout();
  const at::Tensor present = model.heads().keep();
  check_options(kOperation, model, objective, options);
  std::vector<int64_t> layers(static_cast<size_t>(layout.layers));
  for (int64_t l = 0; l < layout.layers; ++l) layers[static_cast<size_t>(l)] = l;
  Steps steps(options, train, calibration);
  const std::vector<LinearProbe> probes = probes_for(model, train, objective, options, layers);
  const Observed observed =
      observe(kOperation, model, train, objective, options, probes, layers, steps);
  const int64_t width = observed.features.front().size(1);

  LayerGateSettings settings;
  settings.weight = at::zeros({layout.layers, layout.heads, width}, at::kDouble);
  settings.reference = at::zeros({layout.layers, width}, at::kDouble);
  settings.static_logits = centred_static_logits(kOperation, options, observed, present);
  const double per_head = options.mean_heads / static_cast<double>(present.sum().item<int64_t>());
  double ridges = 0, explained = 0;
  int64_t finite = 0;
  for (int64_t l = 0; l < layout.layers; ++l) {
    const at::Tensor& features = observed.features[static_cast<size_t>(l)];
    settings.reference[l] = features.mean(0);
    const at::Tensor there = present[l].nonzero().flatten();
    if (there.numel() == 0) continue;
    const RidgeRegression regression =
        scaled_regression(features, observed.target.select(1, l).index_select(1, there),
                          static_cast<int64_t>(options.features.size()), options,
                          layers_to_rank(present.slice(0, l, l + 1), there,
                                         per_head * static_cast<double>(there.numel())),
                          settings.static_logits[l].index_select(0, there));
    settings.weight[l].index_copy_(0, there, regression.weight);
    explained += regression.explained / static_cast<double>(layout.layers);
    if (std::isinf(regression.ridge)) continue;
    ridges += regression.ridge;
    ++finite;
  }
  settings.features = options.features;
  settings.probes = probes;
  settings.fixed =
      at::zeros({layout.layers, layout.heads}, at::kChar).masked_fill(present.logical_not(), -1);
  settings.min_heads = options.min_heads;
  settings.dropped_output = options.dropped_output;
  LayerGate gate = with_mean_heads(model, calibration, LayerGate(settings), options.mean_heads);
  at::Tensor logits = layer_gate_logits(model, calibration, gate);
  settings.fixed = settled(settings.fixed, gate.open_heads(logits), options.settled_share);
  settings.threshold = gate.settings().threshold;
  settings.calibration = calibration_text(options.mean_heads, logits.size(0));
  gate = with_mean_heads(model, calibration, LayerGate(settings), options.mean_heads);
  logits = layer_gate_logits(model, calibration, gate);

  FittedLayerGate fitted;
  fitted.report =
      report_on(observed, logits, gate.open_heads(logits), gate.settings().fixed, present);
  fitted.report.ridge =
      finite > 0 ? ridges / static_cast<double>(finite) : std::numeric_limits<double>::infinity();
  fitted.report.explained = explained;
  fitted.gate = std::make_shared<LayerGate>(std::move(gate));
  return fitted;
}

}  // namespace headkit
