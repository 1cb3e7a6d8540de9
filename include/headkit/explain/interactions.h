#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace headkit {

/// Worth of sets of players: double [n, N], rows of 0 and 1, -> double [n].
using SetWorth = std::function<at::Tensor(const at::Tensor& sets)>;

/// The worth of every set, double [2^N]: at place m that of the players whose bits are set in m.
/// N <= 20.
at::Tensor worth_of_all_sets(const SetWorth& worth, int64_t players);

/// What orders of players tell of their Shapley values.
struct SampledShapley {
  at::Tensor values;  ///< double [N]; they sum to v(all) - v(none)
  at::Tensor errors;  ///< double [N]: standard error over pairs of orders
  int64_t orders = 0;
};

/// Shapley values from `orders` (even, >= 4) random orders in antithetic pairs: each order and its
/// reverse. Throws std::invalid_argument for other numbers. Source: Castro et al. 2009; antithetic
/// orders Mitchell et al. 2022.
SampledShapley sample_shapley(const SetWorth& worth, int64_t players, int64_t orders,
                              uint64_t seed);

/// Shapley interaction index of every pair, double [N, N], symmetric, 0 on the diagonal; `worth`
/// as `worth_of_all_sets` gives it, N <= 20. O(N^2 2^N). Source: Grabisch, Roubens 1999.
at::Tensor shapley_interactions(const at::Tensor& worth);

/// Faith-Shap of order two: the weighted least squares fit of v by singles and pairs that keeps
/// v(none) and v(all).
struct FaithfulInteractions {
  at::Tensor singles;    ///< double [N]
  at::Tensor pairs;      ///< double [N, N], symmetric, 0 on the diagonal
  double explained = 1;  ///< weighted share of the variance of v that the fit explains
  int64_t sets = 0;      ///< that were played beside none and all
  bool exact = false;    ///< whether those were all
};

/// FSII from all sets where these are no more than `sets`, else from `sets` random ones, each with
/// its complement. Throws std::invalid_argument for fewer than two players, and for fewer sets than
/// the fit has numbers. Source: Tsai, Yeh, Ravikumar 2023.
FaithfulInteractions faithful_interactions(const SetWorth& worth, int64_t players, int64_t sets,
                                           uint64_t seed);

}  // namespace headkit
