#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "gates/units_there.h"
#include "headkit/core/error.h"
#include "headkit/gates/escalation.h"
#include "headkit/gates/mask_policy.h"
#include "headkit/gates/reactivation.h"
#include "headkit/gates/train_ladder.h"
#include "headkit/pruners/make_ladder.h"
#include "headkit/pruners/sort_neurons.h"
#include "headkit/pruners/top_fraction.h"
#include "headkit/scorers/fisher.h"
#include "pruners/hybrid_job.h"

namespace headkit {
namespace {

constexpr auto kOperation = "fit_hybrid";
constexpr double kHeadShares[] = {1.0 / 4, 1.0 / 3, 1.0 / 2, 2.0 / 3};
constexpr double kBlockShares[] = {0.15, 0.3, 0.5};
constexpr double kStaticHeadShares[] = {1.0 / 4, 1.0 / 3, 1.0 / 2, 2.0 / 3, 5.0 / 6, 1.0};
constexpr double kUnlimited = 1e9;
constexpr int64_t kSteps = 16;

struct Shares {
  std::vector<double> heads, blocks;
};

// A ladder with what climbs it, set to the budget.
struct Climbed {
  Ladder ladder;
  Shares shares;
  std::shared_ptr<AdjustablePolicy> policy = {};
  double lambda = 1;
  std::vector<double> steps = {};  // lambdas at which further sixteenths of the examples climb
  double distance = std::numeric_limits<double>::infinity();
};

class LadderStage {
 public:
  explicit LadderStage(const HybridJob& job)
      : job_(job),
        model_(job.model),
        settings_(job.settings),
        there_(job.model),
        reactivates_(job.settings.mechanism == "reactivation") {}

  std::shared_ptr<AdjustablePolicy> fit() {
    const bool neurons = uses_neurons();
    if (neurons) sort();
    try {
      return fit_sorted(neurons);
    } catch (...) {
      if (order_of_neurons_.defined())
        order_neurons(model_, order_of_neurons_.argsort(int64_t{1}, false));
      throw;
    }
  }

 private:
  bool uses_neurons() const {
    if (settings_.neurons == "none") return false;
    if (!settings_.block_shares.empty() || settings_.neurons == "fisher") {
      HEADKIT_CHECK(model_.gated_units().neurons, kOperation,
                    "a model that shows its feed-forward blocks, for neurons on the rungs",
                    "one that does not");
      return true;
    }
    // A budget of heads gains nothing by closed neurons.
    return settings_.head_shares.empty() && !settings_.budget.mean_heads &&
           model_.gated_units().neurons && !job_.objective.stationary_at_dense() &&
           there_.neurons().size(0) == there_.layout().layers;
  }

  void sort() {
    FisherOptions options;
    options.progress = job_.tick;
    const at::Tensor scores = fisher_information(model_, job_.few, job_.objective, options).neurons;
    order_of_neurons_ = sort_neurons(model_, scores);
    neuron_scores_ = scores.gather(1, order_of_neurons_);
    job_.note("sort_neurons",
              c10::str("neurons of ", scores.size(0), " layers by the Fisher information of ",
                       job_.objective.name()),
              std::numeric_limits<double>::quiet_NaN());
  }

  std::shared_ptr<AdjustablePolicy> fit_sorted(bool neurons) {
    const std::vector<Shares> shapes = shapes_to_try(neurons);
    double lowest = 1;
    for (const Shares& each : shapes) lowest = std::min(lowest, each.heads.front());
    order_ = job_.order_heads(lowest);

    Climbed best;
    int64_t tried = 0;
    double least = std::numeric_limits<double>::infinity();
    for (const Shares& shares : shapes) {
      const double cost = low_cost(make(shares, false));
      least = std::min(least, cost);
      if (cost > job_.budget()) continue;
      ++tried;
      Climbed found = climb(make(shares, settings_.compensate), shares);
      if (found.distance < best.distance) best = std::move(found);
    }
    if (!best.policy) job_.refuse_budget(least);
    job_.note("ladder",
              c10::str(describe(best.ladder), ", the best of ", tried, " on held-out examples"),
              best.distance);
    measure_static(neurons && !settings_.budget.mean_heads, lowest);
    if (settings_.train > 0) train(best);
    if (settings_.train > 0) {
      job_.report.arms.push_back(
          job_.held_out.measure("top rung", model_, MaskPolicy(model_.heads())));
    }
    job_.report.arms.push_back(
        job_.held_out.measure("low rung", model_, Escalation({best.ladder, 0})));
    job_.finish(*best.policy, best.lambda, best.steps);
    return best.policy;
  }

  std::vector<Shares> shapes_to_try(bool neurons) const {
    if (!settings_.head_shares.empty()) return {{settings_.head_shares, settings_.block_shares}};
    std::vector<Shares> shapes;
    for (const double heads : kHeadShares) {
      if (!neurons) shapes.push_back({{heads}, {}});
      for (const double blocks : kBlockShares) {
        if (neurons) shapes.push_back({{heads}, {blocks}});
      }
    }
    return shapes;
  }

  int64_t layer() const {
    if (!reactivates_) return 0;
    return settings_.layer > 0 ? settings_.layer : std::max<int64_t>(there_.layout().layers / 2, 1);
  }

  Ladder make(const Shares& shares, bool compensate, bool common = true) const {
    LadderPlan plan;
    plan.scores = order_.scores;
    plan.order = order_.order;
    plan.head_shares = shares.heads;
    plan.block_shares = shares.blocks;
    if (!shares.blocks.empty()) plan.neuron_scores = neuron_scores_;
    plan.common_layers = common ? layer() : 0;
    if (compensate) plan.data = &job_.few;
    plan.progress = job_.tick;
    return make_ladder(model_, plan);
  }

  UnitCounts counts(const Rung& rung, int64_t first = 0) const {
    return there_.count(rung.heads.keep(), rung.blocks, first, there_.layout().layers);
  }

  double low_cost(const Ladder& ladder) const {
    return job_.held_out.cost(settings_.budget, counts(ladder.rung(0)),
                              static_cast<double>(there_.layout().layers));
  }

  std::string describe(const Ladder& ladder) const {
    std::string text;
    for (int64_t r = 0; r + 1 < ladder.size(); ++r) {
      const UnitCounts run = counts(ladder.rung(r)), all = counts(ladder.rung(ladder.size() - 1));
      text += c10::str(r > 0 ? ", " : "", run.heads, " of ", all.heads, " heads");
      if (ladder.rung(r).blocks.defined()) {
        text += c10::str(" and ", run.neurons, " of ", all.neurons, " neurons");
      }
    }
    return text;
  }

  // Milliseconds that an example runs in all to end on each rung.
  at::Tensor milliseconds(const Ladder& ladder, const Reactivation* reactivation) const {
    std::vector<double> all;
    const int64_t layers = there_.layout().layers;
    UnitCounts total;
    double run = 0;
    for (int64_t r = 0; r < ladder.size(); ++r) {
      if (reactivation != nullptr) {
        total = counts(reactivation->path(r));
        run = static_cast<double>(layers);
      } else {
        const int64_t shared = r > 0 ? ladder.shared_layers(r) : 0;
        const UnitCounts own = counts(ladder.rung(r), shared);
        total = {total.heads + own.heads, total.kv_heads + own.kv_heads,
                 total.neurons + own.neurons};
        run += static_cast<double>(layers - shared);
      }
      all.push_back(job_.held_out.milliseconds(total, run));
    }
    return at::tensor(all, at::kDouble);
  }

  // The largest lambda within the budget; none if the lowest rung exceeds it.
  std::optional<double> lambda_of(const LadderTrace& trace, const Ladder& ladder,
                                  const Reactivation* reactivation) const {
    LadderTrace costs = trace;
    LadderBudget budget;
    const HybridBudget& wanted = settings_.budget;
    (wanted.mean_heads ? budget.mean_heads : budget.flops_share) = job_.budget();
    if (wanted.milliseconds) {
      costs.flops = milliseconds(ladder, reactivation).expand_as(trace.flops);
      costs.dense_flops = at::ones_like(trace.dense_flops);
    }
    const std::vector<double> powers =
        reactivation != nullptr ? reactivation->settings().powers : std::vector<double>{};
    const auto cost = [&](double lambda) {
      const at::Tensor reached = trace.reached(rung_thresholds(lambda, powers, ladder.size()));
      return wanted.mean_heads ? costs.mean_heads(reached) : costs.flops_share(reached);
    };
    if (cost(0) > job_.budget()) return std::nullopt;
    // At 1 a reactivation runs the top rung below its layer too.
    const double most = reactivation != nullptr ? std::nextafter(1.0, 0.0) : 1.0;
    if (cost(1) <= job_.budget()) return most;
    return std::min(ladder_lambda(costs, budget, powers), most);
  }

  Climbed climb(const Ladder& ladder, const Shares& shares) const {
    Climbed found;
    found.ladder = ladder;
    found.shares = shares;
    LadderTrace trace;
    std::vector<double> powers;
    std::shared_ptr<Reactivation> reactivation;
    std::shared_ptr<AdjustablePolicy> policy;
    if (reactivates_) {
      ReactivationFit fit;
      fit.layer = layer();
      // Between two rungs there are no powers to choose, and lambda is set below.
      fit.budget.flops_share = kUnlimited;
      if (ladder.size() > 2 && !settings_.budget.milliseconds) {
        fit.budget = {settings_.budget.mean_heads, settings_.budget.flops};
      }
      fit.progress = job_.tick;
      FittedReactivation fitted =
          fit_reactivation(model_, job_.train, job_.held_out.data(), ladder, fit);
      reactivation = fitted.policy;
      powers = reactivation->settings().powers;
      trace = std::move(fitted.trace);
      policy = reactivation;
    } else {
      const EscalationSettings settings{.ladder = ladder};
      trace = trace_escalation(model_, job_.held_out.data(), settings, job_.tick);
      policy = std::make_shared<Escalation>(settings);
    }
    const std::optional<double> lambda = lambda_of(trace, ladder, reactivation.get());
    if (!lambda) return found;
    found.lambda = *lambda;
    found.policy = adjusted(*policy, *lambda);
    const at::Tensor confidence = std::get<0>(trace.confidence.select(1, 0).clamp(0, 1).sort());
    for (int64_t i = 1; i < kSteps; ++i) {
      found.steps.push_back(confidence[i * confidence.size(0) / kSteps].item<double>());
    }
    const at::Tensor reached = trace.reached(rung_thresholds(*lambda, powers, ladder.size()));
    found.distance = trace.kl.gather(1, reached.unsqueeze(1)).mean().item<double>();
    return found;
  }

  void train(Climbed& best) const {
    TrainLadderOptions options;
    options.steps = settings_.train;
    options.learning_rate = settings_.learning_rate;
    if (!job_.objective.needs_dense()) options.task = &job_.objective;
    options.compensate = settings_.compensate;
    options.seed = settings_.seed;
    options.progress = job_.tick;
    const LadderTraining trained =
        train_ladder(model_, best.ladder, job_.train, job_.held_out.distance(), options);
    best = climb(trained.ladder, best.shares);
    HEADKIT_CHECK_RUNTIME(best.policy != nullptr, kOperation, "the ladder that was trained",
                          "one of other size");
    job_.note("train", c10::str(settings_.train, " steps, all rungs together"),
              job_.held_out.measure("trained", model_, *best.policy).distance);
  }

  // The best set at the budget that is the same for all examples.
  void measure_static(bool neurons, double lowest) const {
    std::optional<HybridArm> best;
    const auto consider = [&](const Shares& shares) {
      const Ladder ladder = make(shares, settings_.compensate, false);
      const HybridArm arm = job_.held_out.measure("static", model_, Escalation({ladder, 0}));
      if (!best || arm.distance < best->distance) best = arm;
    };
    const auto cost = [&](double heads, double blocks) {
      Shares shares{{heads}, {}};
      if (neurons) shares.blocks = {blocks};
      return low_cost(make(shares, false, false));
    };
    // The share at which `cost_at` comes closest to the budget.
    const auto fitting_share = [&](int64_t total, double least, const auto& cost_at) {
      int64_t low = static_cast<int64_t>(std::ceil(least * static_cast<double>(total))),
              high = total;
      const auto share = [&](int64_t count) {
        return static_cast<double>(count) / static_cast<double>(total);
      };
      while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        (cost_at(share(middle)) >= job_.budget() ? high : low) =
            cost_at(share(middle)) >= job_.budget() ? middle : middle + 1;
      }
      return share(low);
    };
    if (!neurons) {
      const double share = fitting_share(there_.heads().count(), lowest,
                                         [&](double heads) { return cost(heads, 1); });
      consider({{share}, {}});
    } else {
      const int64_t blocks = (there_.neurons() > 0).sum().item<int64_t>();
      for (const double heads : kStaticHeadShares) {
        if (heads < lowest || cost(heads, 0) > job_.budget()) continue;
        const double share =
            fitting_share(blocks, 0, [&](double some) { return cost(heads, some); });
        consider({{heads}, {share}});
      }
    }
    if (best) job_.report.arms.push_back(*best);
  }

  const HybridJob& job_;
  GatedModel& model_;
  const HybridSettings& settings_;
  UnitsThere there_;
  bool reactivates_;
  at::Tensor order_of_neurons_, neuron_scores_;
  HeadOrder order_;
};

}  // namespace

std::shared_ptr<AdjustablePolicy> fit_ladder_policy(const HybridJob& job) {
  return LadderStage(job).fit();
}

}  // namespace headkit
