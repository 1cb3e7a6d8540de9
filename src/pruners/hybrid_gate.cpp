#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "gates/units_there.h"
#include "headkit/core/error.h"
#include "headkit/core/flops.h"
#include "headkit/gates/layer_gate.h"
#include "headkit/gates/linear_gate.h"
#include "headkit/gates/mask_policy.h"
#include "headkit/gates/train_input_gates.h"
#include "headkit/pruners/mean_output.h"
#include "headkit/pruners/top_fraction.h"
#include "pruners/hybrid_job.h"

namespace headkit {
namespace {

constexpr int kBisections = 12, kSteps = 16;

class GateStage {
 public:
  explicit GateStage(const HybridJob& job)
      : job_(job), model_(job.model), settings_(job.settings), there_(job.model) {}

  std::shared_ptr<AdjustablePolicy> fit() {
    const double heads = heads_of_budget();
    const HeadScores scores = scores_of(job_.order_heads(0));
    const auto kept = static_cast<int64_t>(std::ceil(heads - 1e-9));
    const HeadMask mask = best_heads(scores, kept);
    at::Tensor dropped;
    if (settings_.compensate) {
      dropped = mean_head_outputs(model_, job_.few, {.gates = GateSet::from_mask(mask)});
    }
    job_.report.arms.push_back(job_.held_out.measure("static", model_, MaskPolicy(mask, dropped)));

    LinearGateFit fit;
    fit.mean_heads = heads;
    fit.dropped_output = dropped;
    fit.scores = scores;
    fit.features = settings_.features;
    fit.progress = job_.tick;
    const bool early = settings_.mechanism == "linear_gate";
    const std::shared_ptr<AdjustablePolicy> gate = early ? linear_gate(fit) : layer_gate(fit);
    const double lambda = lambda_of(*gate);
    const std::shared_ptr<AdjustablePolicy> policy = adjusted(*gate, lambda);
    std::vector<double> steps;
    for (int i = 1; i < kSteps; ++i) steps.push_back(static_cast<double>(i) / kSteps);
    job_.finish(*policy, lambda, std::move(steps));
    return policy;
  }

 private:
  double cost_of(double heads) const {
    const HeadLayout& layout = there_.layout();
    const double kv_heads =
        heads * static_cast<double>(layout.key_value_heads()) / static_cast<double>(layout.heads);
    return job_.held_out.cost(
        settings_.budget,
        {heads, kv_heads, static_cast<double>(there_.neurons().sum().item<int64_t>())},
        static_cast<double>(layout.layers));
  }

  // Mean heads that cost what the budget allows.
  double heads_of_budget() const {
    const auto all = static_cast<double>(there_.heads().count());
    if (settings_.budget.mean_heads) return *settings_.budget.mean_heads;
    if (cost_of(1) > job_.budget()) job_.refuse_budget(cost_of(1));
    double low = 1, high = all;
    if (cost_of(all) <= job_.budget()) return all;
    while (high - low > 1e-3) {
      const double middle = (low + high) / 2;
      (cost_of(middle) <= job_.budget() ? low : high) = middle;
    }
    return low;
  }

  HeadScores scores_of(const HeadOrder& order) const {
    if (order.scores.values.defined()) return order.scores;
    // Ranks around 0: a gate takes scores of both signs by their spread.
    HeadScores scores;
    const HeadLayout& layout = there_.layout();
    const auto gone = static_cast<double>(order.order.size());
    scores.values = at::full({layout.layers, layout.heads}, gone / 2, at::kDouble);
    for (size_t i = 0; i < order.order.size(); ++i) {
      scores.values[order.order[i].layer][order.order[i].head] = static_cast<double>(i) - gone / 2;
    }
    scores.metric = "backward_elimination";
    return scores;
  }

  HeadMask best_heads(const HeadScores& scores, int64_t count) const {
    const std::vector<HeadId> going = removal_order(scores, 0, there_.heads());
    at::Tensor keep = there_.heads().keep().clone();
    const int64_t leaving = there_.heads().count() - count;
    for (int64_t i = 0; i < leaving; ++i) {
      keep[going[static_cast<size_t>(i)].layer][going[static_cast<size_t>(i)].head] = false;
    }
    return HeadMask(keep);
  }

  template <typename Trained, typename Gate>
  Trained trained(const Gate& start, double mean_heads) const {
    TrainInputGatesOptions options;
    options.gates.budget = mean_heads / static_cast<double>(there_.heads().count());
    options.steps = settings_.train;
    options.seed = settings_.seed;
    options.compensate = settings_.compensate;
    options.progress = job_.tick;
    Trained found = train_input_gates(model_, start, job_.train, job_.held_out.data(),
                                      job_.held_out.distance(), options);
    job_.note("train",
              c10::str(settings_.train, " steps of the gate alone",
                       found.report.warning.empty() ? "" : "; ", found.report.warning),
              job_.held_out.measure("trained", model_, *found.gate).distance);
    return found;
  }

  void note(const LinearGateReport& report, const GatePolicy& gate) const {
    job_.note("gate",
              c10::str(report.contested, " heads contested; inputs explain ", report.input_variance,
                       " of the logits' variance"),
              job_.held_out.measure("fitted", model_, gate).distance);
  }

  std::shared_ptr<AdjustablePolicy> linear_gate(const LinearGateFit& fit) const {
    FittedLinearGate fitted =
        fit_linear_gate(model_, job_.train, job_.held_out.data(), job_.objective, fit);
    std::shared_ptr<LinearGate> gate = fitted.gate;
    if (settings_.compensate) {
      // What a head gives where the gate closes it is not what it gives on the whole.
      MeanOutputOptions options;
      options.decide = [&](const ModelState& state) {
        GatePolicy::State none;
        return gate->decide({0, state.hidden, state.attention_mask}, none);
      };
      gate = std::make_shared<LinearGate>(
          gate->with_dropped_output(mean_head_outputs(model_, job_.few, options)));
    }
    note(fitted.report, *gate);
    if (settings_.train > 0) gate = trained<TrainedLinearGate>(*gate, fit.mean_heads).gate;
    return gate;
  }

  std::shared_ptr<AdjustablePolicy> layer_gate(const LinearGateFit& fit) const {
    FittedLayerGate fitted =
        fit_layer_gate(model_, job_.train, job_.held_out.data(), job_.objective, fit);
    std::shared_ptr<LayerGate> gate = fitted.gate;
    note(fitted.report, *gate);
    if (settings_.train > 0) gate = trained<TrainedLayerGate>(*gate, fit.mean_heads).gate;
    return gate;
  }

  // The largest lambda, to 1/4096, at which the held-out examples keep the budget.
  double lambda_of(const AdjustablePolicy& gate) const {
    const auto cost = [&](double lambda) {
      job_.tick(0, -1);
      return HeldOut::cost(settings_.budget,
                           job_.held_out.measure("lambda", model_, *gate.at(lambda)));
    };
    const double limit = job_.budget() * (1 + 1e-12);
    if (cost(1) <= limit) return 1;
    const double least = cost(0);
    if (least > limit) job_.refuse_budget(least);
    double low = 0, high = 1;
    for (int i = 0; i < kBisections; ++i) {
      const double middle = (low + high) / 2;
      (cost(middle) <= limit ? low : high) = middle;
    }
    return low;
  }

  const HybridJob& job_;
  GatedModel& model_;
  const HybridSettings& settings_;
  UnitsThere there_;
};

}  // namespace

std::shared_ptr<AdjustablePolicy> fit_gate_policy(const HybridJob& job) {
  return GateStage(job).fit();
}

}  // namespace headkit
