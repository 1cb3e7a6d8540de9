#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "headkit/core/flops.h"

namespace headkit {

/// Units that stay, and what they are worth and cost.
struct CostSearch {
  at::Tensor heads;    ///< bool, CPU, the shape of the importance of heads; true = stays
  at::Tensor neurons;  ///< the same of neurons; undefined if there were none
  double importance = 0;
  double cost = 0;
};

/// The units of largest total importance whose cost, `costs.fixed` included, is within `budget`:
/// exact where all heads cost the same and all neurons do. For each number of heads (the best
/// first) the best neurons fill what is left. Importance: finite, >= 0, any shape; `neuron`
/// undefined = heads alone. Ties go to the lower index. Throws std::invalid_argument for a budget
/// below `costs.fixed`. Source: Kwon et al. 2022, whose code starts at one head and so exceeds
/// small budgets.
CostSearch search_under_costs(const at::Tensor& head, const at::Tensor& neuron,
                              const UnitCosts& costs, double budget);

/// A latency table as flat, then linear: `constant` up to `threshold` units, plus `slope` for each
/// unit beyond.
struct LatencyFit {
  int64_t threshold = 0;
  double constant = 0;
  double slope = 0;
  /// Of a sublayer with so many units; 0 units = the sublayer is dropped and costs nothing.
  double at(int64_t units) const;
};

/// Least squares over the threshold, the smallest on ties: constant = mean of the first entries,
/// slope = max(0, sum(x y) / sum(x^2)) beyond. `table[i]` is the latency with i + 1 units. Throws
/// std::invalid_argument for an empty table or entries that are not finite and >= 0. Source: Kwon
/// et al. 2022.
LatencyFit fit_latency(const std::vector<double>& table);

/// The same search under fitted latencies. For each number of attention and of feed-forward
/// sublayers that are dropped, those of least total importance first, every kept sublayer pays its
/// constant and gets `threshold` units free (all of them where the slope is 0); the best of the
/// other units fill what is left of the budget. `head` [L, H], `neuron` [L', F] or undefined.
/// Exact for the sublayers that stay. Source: Kwon et al. 2022, whose code carries the budget from
/// one case to the next and leaves out the importance of free units.
CostSearch search_under_latency(const at::Tensor& head, const at::Tensor& neuron,
                                const LatencyFit& head_latency, const LatencyFit& neuron_latency,
                                double budget);

}  // namespace headkit
