#pragma once

#include <ATen/ATen.h>

#include "headkit/attention/gated_attention.h"

namespace headkit {

/// A random layer of `heads` heads on an input [batch, length, width].
struct AttentionCase {
  AttentionCase(int64_t batch, int64_t length, int64_t heads, int64_t head_dim, int64_t width,
                at::ScalarType dtype = at::kDouble)
      : heads(heads) {
    at::manual_seed(7);
    const auto random = [&](at::IntArrayRef shape) { return at::randn(shape, dtype); };
    const int64_t rows = heads * head_dim;
    x = random({batch, length, width});
    weights = {random({rows, width}), random({rows, width}), random({rows, width}),
               random({width, rows}), random({rows}),        random({rows}),
               random({rows}),        random({width})};
  }

  int64_t heads;
  at::Tensor x;
  AttentionWeights weights;
};

}  // namespace headkit
