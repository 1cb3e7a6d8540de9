#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "headkit/explain/decision_record.h"
#include "headkit/gates/linear_logits.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/scorers/bootstrap.h"

namespace headkit {

/// How well a reader could tell a gate's decisions from what an explanation shows: base + the parts
/// that are displayed, compared with the threshold. The faithfulness of "why selected".
struct Simulatability {
  int64_t inputs = 0;
  int64_t shown_parts = 0;  ///< of each head, largest magnitude first
  int64_t decisions = 0;    ///< of heads that are decided for each input
  double accuracy = 0;
  double lower = 0, upper = 0;          ///< bootstrap over inputs
  double majority = 0;                  ///< always saying the commoner of on and off
  double majority_by_head = 0;          ///< the same for each head by itself: the rate to beat
  std::optional<double> auroc;          ///< of the shown margin; null where all decisions are alike
  std::optional<double> auroc_by_head;  ///< mean over heads that some inputs open and others close
  std::string to_json() const;
};

/// Of records of held-out inputs that tell their parts. Throws std::invalid_argument for records
/// without logits, fewer than two inputs, and `shown_parts` < 0.
Simulatability gate_simulatability(const std::vector<DecisionRecord>& records,
                                   int64_t shown_parts = 5, const BootstrapOptions& options = {});

/// Area under the ROC curve: P(score of a positive > that of a negative), ties count half. Null
/// where one kind is missing. `positive`: 0/1.
std::optional<double> auroc(const std::vector<double>& scores, const std::vector<char>& positive);

/// The same decisions with weights that know nothing: each head's row is drawn anew from a normal
/// distribution of its own standard deviation. Reference, base and rule stay.
std::vector<LinearLogits> reinitialised(std::vector<LinearLogits> gates, uint64_t seed);

/// How alike two gates explain the same inputs: an explanation that survives another gate says
/// nothing about the gate.
struct RandomisationCheck {
  int64_t inputs = 0;
  int64_t heads = 0;  ///< compared
  /// Spearman correlation of the parts by token of a head, mean over heads and inputs of at least
  /// three tokens.
  double similarity = 0;
  double lower = 0, upper = 0;  ///< bootstrap over inputs
  /// The upper end lies below `limit`: the explanation depends on the gate.
  bool changes = false;
  double limit = 0.5;
  std::string to_json() const;
};

/// Explains `data` by the decisions `gates` and by `others` (reinitialised, or of a policy trained
/// on shuffled labels), both from the states of the dense model. Throws std::invalid_argument for
/// decisions about other heads, and data without two inputs of at least three tokens.
RandomisationCheck check_randomisation(GatedModel& model, const DataSource& data,
                                       const std::vector<LinearLogits>& gates,
                                       const std::vector<LinearLogits>& others, double limit = 0.5,
                                       const BootstrapOptions& options = {});

}  // namespace headkit
