#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "headkit/scorers/bootstrap.h"

namespace headkit {

/// The same inputs once more: under another seed, paraphrased, in another dtype, from another
/// checkpoint. What is undefined was not measured.
struct StabilityRun {
  std::string name;
  at::Tensor selection;    ///< gates [N, L, H]; 0 = closed
  at::Tensor explanation;  ///< [N, R]: R reasons that mean the same in every run, for example parts
  at::Tensor effect;       ///< [N, L, H]: effects of the heads
};

/// How alike sets of heads are that runs selected for one input, mean over inputs.
struct SelectionStability {
  /// Nogueira's index, 1 = identical, about 0 = random at any size. Over the inputs where it is
  /// defined; null where it is for none (all or no heads selected throughout).
  std::optional<double> nogueira, nogueira_lower, nogueira_upper;
  int64_t undefined_inputs = 0;
  double jaccard = 0;    ///< mean over pairs of runs; high by chance where most heads are selected
  double identical = 0;  ///< share of inputs with the same selection in every run
};

/// How alike rankings of one input are between pairs of runs, mean over pairs and inputs.
struct RankStability {
  std::optional<double> kendall, kendall_lower, kendall_upper;  ///< tau-b; null where undefined
  double rbo = 0, rbo_lower = 0, rbo_upper = 0;                 ///< extrapolated, p = 0.9
  int64_t undefined_inputs = 0;                                 ///< of tau-b
};

/// Three claims, never one number: the same gates, the same reasons, the same effects. Intervals
/// are bootstraps over inputs.
struct ExplanationStability {
  std::string axis;                ///< what differs between runs: seed, paraphrase, dtype ...
  std::vector<std::string> names;  ///< of the runs
  int64_t inputs = 0;
  std::optional<SelectionStability> selection;
  std::optional<RankStability> explanation;  ///< reasons ranked by magnitude
  std::optional<RankStability> effect;       ///< effects ranked with their sign
  std::string to_json() const;
};

/// A field is computed where every run has it. Padding and batch composition are no axes: there the
/// selection must be identical. O(runs^2 N R^2). Throws std::invalid_argument for fewer than two
/// runs, shapes that differ, values that are not finite, and runs without any field in common.
/// Source: Nogueira, Sechidis, Brown 2018; Webber, Moffat, Zobel 2010.
ExplanationStability explanation_stability(const std::vector<StabilityRun>& runs, std::string axis,
                                           const BootstrapOptions& options = {});

}  // namespace headkit
