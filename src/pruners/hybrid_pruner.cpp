#include "headkit/pruners/hybrid_pruner.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include "core/json.h"
#include "headkit/core/error.h"
#include "headkit/gates/mask_policy.h"
#include "headkit/pruners/backward_elimination.h"
#include "headkit/scorers/head_scorer.h"
#include "pruners/example_views.h"
#include "pruners/hybrid_job.h"

namespace headkit {
namespace {

constexpr auto kOperation = "fit_hybrid";
constexpr auto kElimination = "backward_elimination";
// Backward elimination costs about half as many runs as heads, for each head that goes.
constexpr int64_t kMostHeadsToEliminate = 160;
constexpr int64_t kShortlist = 8;

bool is_ladder(const HybridSettings& settings) {
  return settings.mechanism == "escalation" || settings.mechanism == "reactivation";
}

void check_settings(GatedModel& model, const Objective& objective, const HybridSettings& settings) {
  const bool ladder = is_ladder(settings);
  HEADKIT_CHECK(ladder || settings.mechanism == "linear_gate" || settings.mechanism == "layer_gate",
                kOperation, "a mechanism of escalation, reactivation, linear_gate or layer_gate",
                settings.mechanism);
  const HybridBudget& budget = settings.budget;
  const int given =
      budget.mean_heads.has_value() + budget.flops.has_value() + budget.milliseconds.has_value();
  HEADKIT_CHECK(given == 1, kOperation, "one budget of mean_heads, flops and milliseconds", given);
  const auto heads = static_cast<double>(model.heads().count());
  HEADKIT_CHECK(!budget.mean_heads || (*budget.mean_heads > 0 && *budget.mean_heads <= heads),
                kOperation, c10::str("a budget of mean heads above 0, at most ", heads),
                *budget.mean_heads);
  HEADKIT_CHECK(!budget.flops || (*budget.flops > 0 && *budget.flops <= 1), kOperation,
                "a budget of FLOPs as a share of the dense model's, above 0, at most 1",
                *budget.flops);
  HEADKIT_CHECK(
      !budget.milliseconds || (*budget.milliseconds > 0 && std::isfinite(*budget.milliseconds)),
      kOperation, "a budget of milliseconds above 0", *budget.milliseconds);
  HEADKIT_CHECK(
      settings.neurons.empty() || settings.neurons == "fisher" || settings.neurons == "none",
      kOperation, "neurons of fisher or none", settings.neurons);
  HEADKIT_CHECK(settings.train >= 0, kOperation, "steps of training of at least 0", settings.train);
  HEADKIT_CHECK(settings.examples >= 1, kOperation, "at least one example", settings.examples);
  HEADKIT_CHECK(ladder || (settings.head_shares.empty() && settings.block_shares.empty()),
                kOperation, "shares of rungs for a ladder only", settings.mechanism);
  HEADKIT_CHECK(settings.block_shares.empty() || !settings.head_shares.empty(), kOperation,
                "head_shares beside block_shares", "none");
  HEADKIT_CHECK(settings.block_shares.empty() || settings.neurons != "none", kOperation,
                "neurons of fisher beside block_shares", settings.neurons);
  HEADKIT_CHECK(settings.head_shares.empty() || !settings.block_shares.empty() ||
                    settings.neurons != "fisher",
                kOperation, "block_shares beside head_shares, for neurons on the rungs", "none");
  HEADKIT_CHECK(!ladder || settings.features.empty(), kOperation, "features for a gate only",
                settings.mechanism);
  HEADKIT_CHECK(ladder || !objective.stationary_at_dense(), kOperation,
                "an objective with a gradient at the dense model for a gate, for example "
                "cross_entropy",
                objective.name());
  const int64_t layers = model.layout().layers;
  HEADKIT_CHECK(settings.mechanism != "reactivation" ||
                    (layers > 1 && settings.layer >= 0 && settings.layer < layers),
                kOperation, c10::str("a layer below ", layers, " for reactivation, 0 = the middle"),
                settings.layer);
  if (!settings.order.empty() && settings.order != kElimination) make_scorer(settings.order);
}

// Puts weights back, unless what was done is kept.
class WeightsBefore {
 public:
  WeightsBefore(GatedModel& model, bool training) : model_(model) {
    if (!training) return;
    for (const auto& [name, tensor] : model.parameters()) before_[name] = tensor.detach().clone();
  }
  void restore() {
    const c10::NoGradGuard no_grad;
    for (auto& [name, tensor] : model_.parameters()) {
      const auto found = before_.find(name);
      if (found != before_.end()) tensor.copy_(found->second);
    }
  }

 private:
  GatedModel& model_;
  std::map<std::string, at::Tensor> before_;
};

}  // namespace

void HybridJob::note(std::string stage, std::string found, double distance) const {
  report.stages.push_back({std::move(stage), std::move(found), distance});
}

void HybridJob::finish(const AdjustablePolicy& policy, double lambda,
                       std::vector<double> steps) const {
  report.lambda = lambda;
  steps.insert(steps.end(), {0, lambda, 1});
  std::sort(steps.begin(), steps.end());
  steps.erase(std::unique(steps.begin(), steps.end()), steps.end());
  report.grid = std::move(steps);
  report.arms.push_back(held_out.measure("policy", model, policy));
  note("lambda", c10::str("lambda ", lambda), report.arms.back().distance);
}

double HybridJob::budget() const {
  const HybridBudget& budget = settings.budget;
  return budget.mean_heads ? *budget.mean_heads
         : budget.flops    ? *budget.flops
                           : *budget.milliseconds;
}

void HybridJob::refuse_budget(double least) const {
  const HybridBudget& wanted = settings.budget;
  const char* unit = wanted.mean_heads ? " heads"
                     : wanted.flops    ? " of the dense model's FLOPs"
                                       : " milliseconds";
  throw std::invalid_argument(
      error_message(kOperation,
                    c10::str("a budget of at least ", least, unit, ", what the least of ",
                             settings.mechanism, " costs"),
                    budget()));
}

HeadOrder HybridJob::order_heads(double lowest) const {
  const HeadMask there = model.heads();
  const std::string name = !settings.order.empty()                 ? settings.order
                           : there.count() > kMostHeadsToEliminate ? "gate_gradient"
                                                                   : kElimination;
  HeadOrder found;
  if (name == kElimination) {
    BackwardEliminationOptions options;
    options.share.keep = lowest * static_cast<double>(there.count()) /
                         static_cast<double>(model.layout().total_heads());
    options.shortlist = kShortlist;
    options.compensate = settings.compensate;
    options.progress = tick;
    const StaticPruning pruning = prune_by_elimination(model, few, held_out.distance(), options);
    const Json details = parse_json(kOperation, pruning.details);
    for (const Json& each : member(kOperation, details, "order")) {
      found.order.push_back({each[0].get<int64_t>(), each[1].get<int64_t>()});
    }
    note("order", c10::str(name, " on ", held_out.distance().name()),
         std::numeric_limits<double>::quiet_NaN());
  } else {
    ScoreOptions options;
    options.bootstrap = 0;
    options.normalization = scorer_info(name).ranking_normalization;
    options.progress = tick;
    found.scores = make_scorer(name)->score(model, few, objective, options);
    note("order", c10::str(name, " of ", objective.name()),
         std::numeric_limits<double>::quiet_NaN());
  }
  return found;
}

std::shared_ptr<AdjustablePolicy> adjusted(const AdjustablePolicy& policy, double lambda) {
  auto found = std::dynamic_pointer_cast<AdjustablePolicy>(policy.at(lambda));
  HEADKIT_CHECK(found != nullptr, kOperation, "a policy that stays adjustable", policy.name());
  return found;
}

FittedHybrid fit_hybrid(GatedModel& model, const DataSource& train, const DataSource& held_out,
                        const Objective& objective, const HybridSettings& settings) {
  check_settings(model, objective, settings);
  const BatchList few = first_examples(train, settings.examples);
  HEADKIT_CHECK(few.size().value_or(0) > 0, kOperation, "examples to fit", "none");
  const auto mode = model.evaluating();

  HybridSettings used = settings;
  if (used.budget.milliseconds && used.latency == nullptr) {
    std::optional<Batch> first;
    first_examples(held_out, 1 << 20).for_each([&](const Batch& batch) {
      if (!first) first = batch;
    });
    HEADKIT_CHECK(first.has_value(), kOperation, "held-out examples", "none");
    LatencyModelOptions options;
    options.blocks = is_ladder(used) && used.neurons != "none" && model.gated_units().neurons;
    used.latency = std::make_shared<LatencyModel>(LatencyModel::measure(model, *first, options));
  }

  FittedHybrid fitted;
  HybridReport& report = fitted.report;
  report.mechanism = used.mechanism;
  report.budget = used.budget;
  report.fitted_examples = count_examples(train);
  int64_t calls = 0;
  const Progress tick = [&](int64_t, int64_t) {
    if (used.progress) used.progress(++calls, -1);
  };
  const HeldOut kept(model, held_out, objective, used.latency);
  report.held_out_examples = kept.examples();
  report.arms.push_back(kept.measure("dense", model, MaskPolicy(model.heads())));
  const HybridJob job{model, train, few, kept, objective, used, report, tick};

  WeightsBefore before(model, is_ladder(used) && used.train > 0);
  try {
    fitted.policy = is_ladder(used) ? fit_ladder_policy(job) : fit_gate_policy(job);
  } catch (...) {
    before.restore();
    throw;
  }
  return fitted;
}

FittedHybrid fit_hybrid(GatedModel& model, const DataSource& data, const Objective& objective,
                        const HybridSettings& settings) {
  const EveryFourth train(data, true), held_out(data, false);
  return fit_hybrid(model, train, held_out, objective, settings);
}

}  // namespace headkit
