#pragma once

#include <ATen/core/Tensor.h>

#include "headkit/models/gated_model.h"

namespace headkit {

/// Puts the neurons of each feed-forward block into another order: place i gets what was at
/// `order[l][i]`, int64 [L, F]. Outputs stay the same, to rounding. The inverse order,
/// order.argsort(1), puts them back. Where layers share their weights, their orders must be equal.
/// Throws std::invalid_argument, before anything changes, for rows that are no permutations and for
/// a model that lost neurons.
void order_neurons(GatedModel& model, const at::Tensor& order);

/// Sorts the neurons of each feed-forward block by `scores` [L, F], largest first (ties: the lower
/// place first), so that the best blocks of 32 neurons are the first ones. Layers that share their
/// weights are sorted by the sum of their scores. Returns the order, for `order_neurons` and for
/// scores: scores.gather(1, order).
/// Source: sub-networks that are prefixes, as in Cai, Gan, Wang, Zhang, Han 2020 (once for all).
at::Tensor sort_neurons(GatedModel& model, const at::Tensor& scores);

}  // namespace headkit
