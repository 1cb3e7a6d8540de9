#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "headkit/core/head_mask.h"

namespace headkit {

/// Why a head runs, or that it does not.
enum class HeadReason : char { kScore, kFloor, kFixed, kClosed };

/// How logits of heads become decisions.
struct HeadRule {
  const int8_t* fixed;  ///< [heads]; 0 = decided, 1 = always on, -1 = pruned
  int64_t heads;
  double threshold;   ///< a head that is decided runs if its logit is at least this
  int64_t min_heads;  ///< so many run at least, the best ones; ties go to the lower head
};

/// Decides one sample from `logit` [heads]; writes `reason` [heads], returns the open heads.
int64_t decide_heads(const double* logit, const HeadRule& rule, HeadReason* reason);

/// 0/1, double [N, ...], of logits of that shape, each sample a row of fixed.numel() heads.
at::Tensor open_heads(const at::Tensor& logits, const at::Tensor& fixed, double threshold,
                      int64_t min_heads);

/// The threshold that lets the samples behind `logits` [N, heads...] run `mean_heads` heads on
/// average: the closest reachable mean that does not exceed it. Each of `groups` equal parts of a
/// row has its own floor. Throws std::invalid_argument if floor and fixed heads alone exceed it.
double threshold_for_mean(const char* operation, const at::Tensor& logits, const at::Tensor& fixed,
                          int64_t min_heads, int64_t groups, double mean_heads);

/// `fixed` [L, H] with the heads that are not there pruned; an empty mask = all are.
at::Tensor fixed_heads(const char* operation, const at::Tensor& fixed, const HeadMask& present);

/// A knob at `lambda` in [0, 1] as fixed heads and a threshold: the quantile 1 - lambda of the
/// logistic distribution with mean and variance of the contested heads' static logits. 1 runs all
/// heads that are not pruned, 0 the floor and what is always on.
struct RuleAt {
  at::Tensor fixed;
  double threshold;
};
RuleAt rule_at(double lambda, const at::Tensor& static_logits, const at::Tensor& fixed,
               double threshold);

}  // namespace headkit
