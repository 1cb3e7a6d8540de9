#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "headkit/gates/conformal.h"

namespace headkit {

/// What the rungs of a ladder say of N calibration examples: enough to set any threshold without
/// running again. R rungs; what the top one gives where all layers run it counts as dense.
struct LadderTrace {
  at::Tensor confidence;   ///< double [N, R - 1]: what decides whether an example leaves each rung
  at::Tensor changed;      ///< double [N, R]: 1 where the label differs from the dense one
  at::Tensor kl;           ///< double [N, R]: KL(dense || rung), in nats
  at::Tensor loss;         ///< double [N, R]: cross entropy of batch["labels"] [B]; or undefined
  at::Tensor dense_loss;   ///< double [N]: the same of the dense one
  at::Tensor heads;        ///< double [R]: heads that an example runs in all to end on the rung
  at::Tensor flops;        ///< double [N, R]: FLOPs that it runs in all
  at::Tensor dense_flops;  ///< double [N]: those of the original encoder

  /// The rung that each example ends on, int64 [N]: it leaves rung r while its confidence is below
  /// thresholds[r]; one of 1 all leave. One threshold for each rung but the top, or one for all.
  at::Tensor reached(const std::vector<double>& thresholds) const;
  double mean_heads(const at::Tensor& reached) const;
  /// FLOPs of all examples over those of the dense model.
  double flops_share(const at::Tensor& reached) const;
};

/// What examples may cost on average: exactly one of the two.
struct LadderBudget {
  std::optional<double> mean_heads = {};   ///< heads run, re-runs included
  std::optional<double> flops_share = {};  ///< of the original encoder, in (0, 1] or above
};

/// Thresholds of all rungs but the top at a knob lambda in [0, 1]: lambda^powers[r], powers >= 1.
/// Empty powers = 1 for all.
std::vector<double> rung_thresholds(double lambda, const std::vector<double>& powers,
                                    int64_t rungs);

/// The lambda at which the traced examples keep a budget: the closest reachable mean that does not
/// exceed it. Throws std::invalid_argument, with what can be reached, if the lowest rung alone
/// exceeds it, or all of the ladder falls short of it in mean heads.
double ladder_lambda(const LadderTrace& trace, const LadderBudget& budget,
                     const std::vector<double>& powers = {});

/// The promise behind the threshold of a ladder.
struct LadderRisk {
  double risk = 0.05;  ///< promised mean loss
  std::string loss =
      "label";         ///< "label" (changed labels), "kl" or "task" (what the loss grows by)
  double bound = 1.0;  ///< losses are cut at it
  int64_t steps = 64;  ///< grid 0, 1/steps .. 1 of lambda
};

/// The lambda by conformal risk control. The promise is about the top rung, which is the dense
/// model if it holds everything.
ConformalResult ladder_lambda_at_risk(const LadderTrace& trace, const LadderRisk& risk,
                                      const std::vector<double>& powers = {});

}  // namespace headkit
