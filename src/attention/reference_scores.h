#pragma once

#include <ATen/core/Tensor.h>

#include "attention/attention_problem.h"

namespace headkit {

/// Scores of the oracle, differentiable, every head computed.
struct ReferenceScores {
  at::Tensor scores;  ///< [B, H, T, S]; -infinity where hidden, 0 in rows where everything is
  at::Tensor dead;    ///< bool, broadcastable to [B, H, T, 1]: rows where everything is hidden
  at::Tensor v;       ///< [B, H, S, dh]

  /// [B, H, T, S]; 0 in dead rows.
  at::Tensor probabilities() const;
};
ReferenceScores reference_scores(const AttentionProblem& problem);  // reference.cpp

}  // namespace headkit
