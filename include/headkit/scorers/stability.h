#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "headkit/core/head_mask.h"

namespace headkit {

/// How alike masks are that one method chose in several runs.
struct Stability {
  int64_t masks = 0;
  double mean_kept = 0;  ///< heads
  double nogueira = 0;   ///< 1 = the same mask, 0 = as alike as by chance
  double variance = 0;   ///< of `nogueira`, asymptotic
  double lower = 0;      ///< its asymptotic normal interval
  double upper = 0;
  double confidence = 0.95;
  double fleiss_kappa = 0;   ///< equals `nogueira`: masks are raters of two categories
  double mean_kuncheva = 0;  ///< over pairs; NaN unless all masks keep the same number
  at::Tensor frequency;      ///< double [layers, heads]: share of the masks that keep a head

  std::string to_json() const;
};

/// Source: Nogueira, Sechidis, Brown 2018; Fleiss 1971; Kuncheva 2007. Throws std::invalid_argument
/// for fewer than two masks, masks of different models, masks that are all empty or all full (the
/// index is then undefined), and a confidence outside (0, 1).
Stability stability(const std::vector<HeadMask>& masks, double confidence = 0.95);

}  // namespace headkit
