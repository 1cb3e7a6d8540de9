#pragma once

#include <cstdint>

#include "headkit/core/head_layout.h"

namespace headkit {

/// FLOPs (multiply-add = 2) that an ideal skipper spends on `active_heads` heads of one sample with
/// `tokens` tokens: 4 * T * dh * (2 * D + T) a head (projections 8*T*D*dh, core 4*T^2*dh).
double attention_flops(const HeadLayout& layout, double active_heads, int64_t tokens);

/// FLOPs of one feed-forward block (two linear maps) for one sample: 4 * T * D * F.
double feed_forward_flops(const HeadLayout& layout, int64_t tokens);

/// FLOPs of a whole encoder for one sample: `active_heads` heads over all layers and every
/// feed-forward block. Embeddings, norms, softmax and the task head are not counted.
double encoder_flops(const HeadLayout& layout, double active_heads, int64_t tokens);

}  // namespace headkit
