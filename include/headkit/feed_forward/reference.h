#pragma once

#include "headkit/feed_forward/gated_feed_forward.h"

namespace headkit {

/// The oracle: dense, differentiable, in plain PyTorch operators, any device and dtype. Computes
/// every block and multiplies by the gates; `skip` changes nothing here. Arguments and result as
/// `gated_feed_forward`.
at::Tensor reference_feed_forward(const at::Tensor& x, const FeedForwardWeights& weights,
                                  const FeedForwardInput& input = {});

}  // namespace headkit
