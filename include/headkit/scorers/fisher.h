#pragma once

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Settings of `fisher_information`.
struct FisherOptions {
  bool neurons = true;  ///< also neurons, where the model has gates of them
  /// Squares of the gradients of mini-batch means instead of those of examples, as some published
  /// code computes them: biased low for heads whose gradient changes sign, and a function of the
  /// batch size. To reproduce only.
  bool per_batch = false;
  bool keep_gradients = false;     ///< fill the gradients of the result
  at::Tensor dropped_output = {};  ///< [L, H, D]: what replaces a closed head; empty = nothing
  Progress progress = {};          ///< batches done
};

/// Empirical Fisher information of the gates at the dense model, from G[x] = dL_x/dg: double, on
/// CPU. Units that are physically gone have 0. Predicted increase of the loss when the gates of
/// layer l become m: 1/2 (1 - m)^T head_blocks[l] (1 - m).
struct FisherInformation {
  at::Tensor heads;             ///< [L, H]: mean over examples of G^2
  at::Tensor head_blocks;       ///< [L, H, H]: mean over examples of G[l] G[l]^T
  at::Tensor neurons;           ///< [layers with a feed-forward block, F]; or undefined
  at::Tensor head_gradients;    ///< [n, L, H], a row an example (or batch); if asked for
  at::Tensor neuron_gradients;  ///< [n, layers, F], float32; if asked for
  int64_t samples = 0;          ///< examples seen
};

/// One forward and one backward a batch; no gradient of a parameter is made. Throws as
/// HeadScorer::score. Source: Kwon et al. 2022.
FisherInformation fisher_information(GatedModel& model, const DataSource& data,
                                     const Objective& objective, const FisherOptions& options = {});

/// The diagonal for heads, with an interval: mean over examples of G^2. `granularity` "batch" is
/// FisherOptions::per_batch. Scaling the loss by k scales it by k^2. Source: Kwon et al. 2022.
class FisherScorer final : public HeadScorer {
 public:
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;
};

}  // namespace headkit
