#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace headkit {

/// m with exactly some of n heads left, the others ablated: `sets` bool [N, n], true = left;
/// returns double [N]. Called with many sets at once.
using SetValue = std::function<at::Tensor(const at::Tensor& sets)>;

/// Settings of `faithfulness`.
struct FaithfulnessOptions {
  /// Where curves are taken. "eraser": at ceil of 1, 5, 10, 20 and 50 % of n; "all": at every k
  /// from 1 to n, which gives the ERASER grid as well.
  std::string grid = "eraser";
  int64_t random_orders = 50;
  uint64_t seed = 0;
  /// Bounds over all orders are exact for n up to `exact_heads` (2^n values), found by a beam of
  /// this width above (about 4 width n k values, k the largest of the grid). 0 = no bounds above.
  int64_t beam_width = 0;
  int64_t exact_heads = 8;
  std::string metric{};    ///< name of m, told in the result
  std::string ablation{};  ///< what stands in for a head that is not left
};

/// One quantity along an order of heads. Values are at the counts of the grid.
struct FaithfulnessCurve {
  std::vector<double> values;
  std::vector<double> inverse;                                  ///< the reversed order
  std::vector<double> random_lower, random_upper, random_mean;  ///< 5 and 95 % of random orders
};

/// Area over the perturbation curve: the mean of a curve over a grid.
struct Aopc {
  std::string grid;  ///< eraser, all
  double value = 0;
  double inverse = 0;
  double random_lower = 0, random_upper = 0;  ///< 5 and 95 % of random orders
  std::optional<double> lowest, highest;      ///< over all orders, as far as `bounds` says
  std::optional<double> normalised;           ///< (value - lowest) / (highest - lowest)
  bool beats_random = false;                  ///< outside the band, on the better side
};

/// How well an order of heads tells which of them m depends on. L2.
struct Faithfulness {
  std::string metric, ablation;
  std::vector<int64_t> order;  ///< places of the n heads, most important first
  double value_all = 0;        ///< m with all n heads
  double value_none = 0;       ///< m with none of them
  std::vector<int64_t> k;      ///< the grid
  int64_t random_orders = 0;
  uint64_t seed = 0;
  FaithfulnessCurve comprehensiveness;  ///< m(all) - m(all without the top k); higher is better
  FaithfulnessCurve sufficiency;        ///< m(all) - m(top k only); lower is better
  std::vector<Aopc> comprehensiveness_aopc, sufficiency_aopc;  ///< one a grid
  std::string bounds;                                          ///< exact, beam; empty = none
  int64_t beam_width = 0;

  std::string to_json() const;
};

/// Curves of an order over n heads with `random_orders` random orders and the inverse beside it.
/// Sets are evaluated once. Throws std::invalid_argument unless `order` is a permutation, for
/// values that are not finite, and options out of range. Source: DeYoung et al. 2020 (ERASER);
/// normalised AOPC after Edin et al. 2024 (2408.08137).
Faithfulness faithfulness(std::span<const int64_t> order, const SetValue& value,
                          const FaithfulnessOptions& options = {});

/// Gini coefficient of |values|: 0 = all alike, (n - 1) / n = one carries all. Null where all are
/// 0.
std::optional<double> gini(std::span<const double> values);
/// The fewest of n values that carry this share of the sum of |values|; 0 where all are 0.
int64_t heads_for_share(std::span<const double> values, double share = 0.9);

}  // namespace headkit
