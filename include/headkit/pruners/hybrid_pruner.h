#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "headkit/gates/adjustable_policy.h"
#include "headkit/gates/latency_model.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// What an example may cost on average: exactly one of the three.
struct HybridBudget {
  std::optional<double> mean_heads = {};    ///< heads run, re-runs included
  std::optional<double> flops = {};         ///< FLOPs, as a share of the original encoder's
  std::optional<double> milliseconds = {};  ///< by HybridSettings::latency
};

/// Settings of `fit_hybrid`.
struct HybridSettings {
  /// "escalation", "reactivation" (ladders of nested rungs), "linear_gate" (one decision for all
  /// layers) or "layer_gate" (one for each).
  std::string mechanism = "escalation";
  HybridBudget budget = {};  ///< required
  /// What says which heads go first: "backward_elimination", or a name in `scorers()`. Empty =
  /// backward elimination up to 160 heads, beyond it the gate gradient.
  std::string order = {};
  /// What says which neurons go first, of the rungs of a ladder: "fisher" or "none". Empty = Fisher
  /// where the model has gates of neurons and the objective a gradient.
  std::string neurons = {};
  /// Share of the heads, and of the blocks of 32 neurons, on the rungs below the top, ascending.
  /// Empty = one rung, chosen on held-out examples among shares 1/4, 1/3, 1/2, 2/3 of heads and
  /// .15, .3, .5 of blocks: the one with which the budget is met at the least distance to dense.
  std::vector<double> head_shares = {};
  std::vector<double> block_shares = {};
  bool compensate = true;                  ///< what is closed adds its mean output
  int64_t layer = 0;                       ///< reactivation decides before it; 0 = in the middle
  std::vector<std::string> features = {};  ///< scalars that a gate reads too (gate_features.h)
  /// Steps of training, a batch each; 0 = everything frozen. Of ladders the model's weights, all
  /// rungs together (train_ladder.h); of gates these alone (train_input_gates.h).
  int64_t train = 0;
  double learning_rate = 4e-5;  ///< of the model's weights
  /// Examples of the training data behind order, neuron scores and mean outputs; gates, probes and
  /// training see all of them.
  int64_t examples = 512;
  std::shared_ptr<const LatencyModel> latency = {};  ///< null = measured, for milliseconds
  uint64_t seed = 0;                                 ///< of what training draws
  Progress progress = {};                            ///< stages done; called more often than that
};

/// One way to run the model, measured on the held-out examples. NaN = does not apply.
struct HybridArm {
  std::string name;  ///< "dense", "top rung" (after training), "low rung", "static", "policy"
  double heads = 0;  ///< run by an example on average
  double flops = 0;  ///< share of the original encoder's
  double milliseconds = 0;  ///< of an example; NaN without a latency model
  double agreement = 0;     ///< share of examples (tokens) with the label of the original model
  double distance = 0;      ///< KL(original || arm), or the objective's own distance to dense
  double quality = 0;       ///< accuracy; NaN without labels
};

/// One stage of the fit, in words.
struct HybridStage {
  std::string name;
  std::string found;
  double distance = 0;  ///< to the original model, of the policy as it is then; NaN = not known
};

/// What each stage did. Held-out examples chose shares and lambda too: the figures are close to,
/// not exactly, those of new examples. What is promised of those, calibration says.
struct HybridReport {
  std::string mechanism;
  HybridBudget budget;
  double lambda = 1;
  /// Lambdas for calibration and control, ascending from 0 to 1: that of the budget, and those at
  /// which a further sixteenth of the held-out examples costs more.
  std::vector<double> grid;
  int64_t fitted_examples = 0;
  int64_t held_out_examples = 0;
  std::vector<HybridStage> stages;
  std::vector<HybridArm> arms;

  /// Throws std::out_of_range for an arm that was not measured.
  const HybridArm& arm(const std::string& name) const;
  std::string to_json() const;
};

/// What `fit_hybrid` returns.
struct FittedHybrid {
  std::shared_ptr<AdjustablePolicy> policy;  ///< its knob at the budget
  HybridReport report;
};

/// The whole recipe behind one call: orders heads (and neurons), builds a ladder or fits a gate
/// with mean outputs for what is closed, trains it where asked for, and sets lambda so that the
/// held-out examples keep the budget. `calibrate` then promises a risk, on examples of their own.
///
/// "static" is the best set of the same order at the budget, the same for every example: what the
/// policy has to beat. Of ladders several splits between heads and neurons are tried for it; it is
/// never trained.
///
/// The model changes only by `sort_neurons` (exact, where neurons are on the rungs) and by training
/// of a ladder; what throws, `progress` too, puts it back. `objective` is the task: its gradient
/// scores neurons, fits gates and, times 1/2, trains the lower rungs. Ladders need outputs [B, C].
/// Throws std::invalid_argument for settings that do not fit, and for a budget that cannot be met,
/// with what can be reached.
FittedHybrid fit_hybrid(GatedModel& model, const DataSource& train, const DataSource& held_out,
                        const Objective& objective, const HybridSettings& settings);
/// The same with every fourth example of `data` held out.
FittedHybrid fit_hybrid(GatedModel& model, const DataSource& data, const Objective& objective,
                        const HybridSettings& settings);

}  // namespace headkit
