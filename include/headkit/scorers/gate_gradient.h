#pragma once

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// First-order importance: the gradient of each example's loss with respect to each head's gate at
/// the dense point, G[x, l, h] = dL_x/dg[l, h]. One forward and one backward a batch; no gradient
/// of a parameter is made. By `granularity` (n examples, c the parts of G by token):
///
///     token     (1/n) sum_x sum_t |c[x, t]|      released code of Michel 2019
///     example   (1/n) sum_x |G[x]|               the paper's formula, the default
///     batch     (1/n) sum_batches |sum_x G[x]|   common scripts; depends on the batch size
///     signed    (1/n) sum_x G[x]                 negative = the head does harm
///
/// so that batch <= example <= token. `denominator` = tokens divides by valid tokens instead of n.
/// Objectives whose minimum is the dense model (KL, cosine) are refused: every score would be 0.
/// Sources: Michel, Levy, Neubig 2019; Molchanov et al. 2017.
class GateGradientScorer final : public HeadScorer {
 public:
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;
};

}  // namespace headkit
