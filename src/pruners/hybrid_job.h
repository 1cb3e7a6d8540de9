#pragma once

#include <memory>
#include <string>
#include <vector>

#include "headkit/core/head_scores.h"
#include "headkit/pruners/hybrid_pruner.h"
#include "pruners/held_out.h"

namespace headkit {

/// Which heads go first: `order`, where the whole course was searched, else by `scores`.
struct HeadOrder {
  HeadScores scores;
  std::vector<HeadId> order;
};

/// What the stages of one fit share.
struct HybridJob {
  GatedModel& model;
  const DataSource& train;
  const BatchList& few;  // of train, for what looks at them many times
  const HeldOut& held_out;
  const Objective& objective;
  const HybridSettings& settings;
  HybridReport& report;
  Progress tick;  // called in the midst of stages

  void note(std::string stage, std::string found, double distance) const;
  /// Orders the heads, of which at least a share `lowest` stays.
  HeadOrder order_heads(double lowest) const;
  /// Throws std::invalid_argument: the budget cannot be met, as nothing costs less than `least`.
  [[noreturn]] void refuse_budget(double least) const;
  double budget() const;  // its number
  /// Measures the policy, which stands at `lambda`: the last stage. `steps`: lambdas at which about
  /// equal shares of the examples cost more.
  void finish(const AdjustablePolicy& policy, double lambda, std::vector<double> steps) const;
};

/// Both add their stages and arms to the report.
std::shared_ptr<AdjustablePolicy> fit_ladder_policy(const HybridJob& job);
std::shared_ptr<AdjustablePolicy> fit_gate_policy(const HybridJob& job);

/// The policy with its knob at `lambda`.
std::shared_ptr<AdjustablePolicy> adjusted(const AdjustablePolicy& policy, double lambda);

}  // namespace headkit
