#include "headkit/pruners/voita.h"

#include <ATen/ATen.h>

#include <cmath>
#include <cstdlib>
#include <optional>

#include "headkit/core/error.h"
#include "headkit/gates/hard_concrete_gates.h"
#include "pruners/learned_training.h"

namespace headkit {
namespace {

constexpr auto kMethod = "voita";

// Searches lambda on a logarithmic scale: larger ones leave fewer heads open.
class PenaltySearch {
 public:
  PenaltySearch(double first, int64_t wanted) : penalty_(first), wanted_(wanted) {}
  double penalty() const { return penalty_; }
  void tell(int64_t open) {
    (open > wanted_ ? low_ : high_) = penalty_;
    if (low_ && high_) {
      penalty_ = std::sqrt(*low_ * *high_);
    } else {
      penalty_ *= low_ ? kFactor : 1 / kFactor;
    }
  }

 private:
  static constexpr double kFactor = 4;
  double penalty_;
  int64_t wanted_;
  std::optional<double> low_, high_;
};

}  // namespace

StaticPruning prune_by_voita(GatedModel& model, const DataSource& data, const Objective& objective,
                             const VoitaOptions& options) {
  const LearnedPruningOptions& training = options.training;
  check_training(kMethod, training);
  HEADKIT_CHECK(options.rounds >= 1 && options.first_penalty > 0, kMethod,
                "at least one round and a penalty above 0", options.rounds, " and ",
                options.first_penalty);
  const HeadLayout layout = model.layout();
  const int64_t wanted = heads_to_keep(model, training.share);
  const bool joint = training.weight_learning_rate > 0;
  const int64_t total = (options.rounds + (joint ? 1 : 0)) * training.steps;
  const auto fresh = [&](double penalty) {
    HardConcreteGates gates({.layers = layout.layers,
                             .heads = layout.heads,
                             .shape = {.beta = options.beta},
                             .penalty = penalty});
    close_lost_heads(model, gates.parameters()[0].value);
    return gates;
  };

  LearnedPruningOptions frozen = training;
  frozen.weight_learning_rate = 0;
  PenaltySearch search(options.first_penalty, wanted);
  std::optional<HardConcreteGates> best;
  int64_t best_gap = 0;
  Json rounds = Json::array();
  for (int64_t round = 0; round < options.rounds; ++round) {
    HardConcreteGates gates = fresh(search.penalty());
    train(model, gates, data, objective, frozen, round * training.steps, total);
    const int64_t open = gates.hard().heads.sum().item<int64_t>();
    rounds.push_back({{"penalty", search.penalty()}, {"open", open}});
    const int64_t gap = std::abs(open - wanted);
    if (!best || gap < best_gap) {
      best.emplace(gates);
      best_gap = gap;
    }
    if (gap == 0) break;
    search.tell(open);
  }
  if (joint) {
    HardConcreteGates gates = fresh(best->settings().penalty);
    train(model, gates, data, objective, training, options.rounds * training.steps, total);
    best.emplace(gates);
  }
  const int64_t open = best->hard().heads.sum().item<int64_t>();
  return prune_by_values(model, data, objective, *best, best->parameters()[0].value, training,
                         {{"method", kMethod},
                          {"penalty", best->settings().penalty},
                          {"beta", options.beta},
                          {"rounds", rounds},
                          {"open", open},
                          {"keep", wanted}});
}

}  // namespace headkit
