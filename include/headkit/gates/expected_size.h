#pragma once

#include <ATen/core/Tensor.h>

#include "headkit/core/head_layout.h"

namespace headkit {

/// Probabilities, or shares, of units being open. Undefined = all open. One dtype, differentiable.
struct OpenUnits {
  at::Tensor heads;                        ///< [L, H]
  at::Tensor attention_sublayers = {};     ///< [L]
  at::Tensor neurons = {};                 ///< [L, F]
  at::Tensor feed_forward_sublayers = {};  ///< [L]
  at::Tensor hidden = {};                  ///< [D], dimensions of the residual stream
};

/// Expected number of weights in attention and feed-forward blocks, biases and norms left out: a
/// scalar, float64. A unit counts where it and everything around it are open. `matrices`: those of
/// a feed-forward block, 2, or 3 where it is gated. Source: Xia, Zhong, Chen 2022.
at::Tensor expected_size(const OpenUnits& open, const HeadLayout& layout, int64_t matrices = 2);
/// The same with everything open. Any ratio of sizes takes both from here: weights over weights and
/// biases would make a dense model look sparse.
double full_size(const HeadLayout& layout, int64_t matrices = 2);

}  // namespace headkit
