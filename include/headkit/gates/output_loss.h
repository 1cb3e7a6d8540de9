#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "headkit/models/objective.h"

namespace headkit {

/// What a gated output costs, against the output with everything that the policy may run ("full").
struct OutputLoss {
  /// "flip": 1 where the label changes (outputs of tokens: the share of tokens); "kl": KL(full ||
  /// gated); "cosine": 1 - cosine of vectors; "task": by how much the task loss rises, 0 where it
  /// falls.
  std::string name = "flip";
  double bound = 1;                      ///< losses above it count as it
  std::shared_ptr<Objective> objective;  ///< of kl, cosine and task

  /// Loss of each example, double [B] in [0, bound], CPU. An output that is not finite loses the
  /// bound. Throws std::invalid_argument for outputs that do not fit and for a full output that is
  /// not finite.
  at::Tensor operator()(const at::Tensor& gated, const at::Tensor& full, const Batch& batch) const;
};

/// Args: `bound` defaults to 1, for cosine to 2, the most that it can be; `task` is the objective
/// of "task", cross entropy where there is none. Throws std::invalid_argument for another name, a
/// bound that is not finite and > 0, or a flip or cosine that could exceed it.
OutputLoss make_output_loss(const std::string& name, std::optional<double> bound = std::nullopt,
                            std::shared_ptr<Objective> task = nullptr);
/// "flip", "kl", "cosine", "task".
std::vector<std::string> output_loss_names();

}  // namespace headkit
