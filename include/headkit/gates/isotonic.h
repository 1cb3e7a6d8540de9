#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace headkit {

/// A nondecreasing piecewise linear function of one number: what a gate logit says of importance.
class IsotonicMap {
 public:
  /// `centres` ascending, `values` ascending, equally many, at least one, all finite.
  IsotonicMap(std::vector<double> centres, std::vector<double> values);
  /// Least squares under "nondecreasing", by pooling adjacent violators; linear between the centres
  /// of the pooled blocks (weighted means of z), constant outside. Equal z are one observation.
  ///
  /// Args: `z`, `target` double [n], n > 0, finite; `weight` double [n], finite, > 0; undefined
  /// = 1. Cost: O(n log n). Source: Ayer, Brunk, Ewing, Reid, Silverman 1955.
  static IsotonicMap fit(const at::Tensor& z, const at::Tensor& target,
                         const at::Tensor& weight = {});
  /// share * own + (1 - share) * other, nondecreasing again; `share` in [0, 1].
  static IsotonicMap blend(double share, const IsotonicMap& own, const IsotonicMap& other);

  double operator()(double z) const;  ///< NaN gives NaN
  const std::vector<double>& centres() const { return centres_; }
  const std::vector<double>& values() const { return values_; }
  bool operator==(const IsotonicMap&) const = default;

 private:
  std::vector<double> centres_, values_;
};

/// One map for each head, so that logits of different heads and layers become comparable numbers.
class HeadIsotonic {
 public:
  HeadIsotonic(int64_t layers, int64_t heads, std::vector<IsotonicMap> maps);
  /// Fits each head's own map and draws it towards the map of all heads of its layer together: of n
  /// samples its own map counts n / (n + shrinkage).
  ///
  /// Args: `logits`, `importance` double [n, L, H], n > 0, finite; `shrinkage` >= 0, in samples.
  /// Use neither the examples that calibrate the risk nor those that test it.
  static HeadIsotonic fit(const at::Tensor& logits, const at::Tensor& importance,
                          double shrinkage = 50);

  /// Importance, double [B, L, H], of logits of that shape.
  at::Tensor operator()(const at::Tensor& logits) const;
  /// Heads (layer * H + head) of each sample from least to most important, int64 [B, L*H]. Equal
  /// importance goes by logit, equal logits by place: the order is strict. NaN counts as most
  /// important.
  at::Tensor order(const at::Tensor& logits) const;

  int64_t layers() const { return layers_; }
  int64_t heads() const { return heads_; }
  const IsotonicMap& map(int64_t layer, int64_t head) const;
  std::string to_json() const;
  static HeadIsotonic from_json(const std::string& text);

 private:
  void check(const at::Tensor& logits) const;

  int64_t layers_, heads_;
  std::vector<IsotonicMap> maps_;
};

}  // namespace headkit
