#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace headkit {

/// Size of the attention scores of one head of one sample, estimated from whole numbers: the
/// Frobenius norm of scale * Q (K - mean key)^T, both operands rounded to int8.
///
/// With K' = K - mean_j K_j, sq = max |Q| / 127, sk = max |K'| / 127, Q8 = round(Q / sq) and K8 =
/// round(K' / sk) (halves to even) it is sq * sk * |scale| * ||Q8 K8^T||_F, the norm exact in
/// integers up to its rounding to double. Taking off the mean key takes the row mean off every
/// score, which softmax does not see. Off by at most T * |scale| / 2 * (sk * max_i |Q_i|_1 + sq *
/// max_j |K'_j|_1 + dh * sq * sk / 2) from the norm without rounding.
///
/// Args: queries, keys double [T, dh], CPU, contiguous, finite: the valid tokens of one sample.
/// O(T dh min(T, 2 dh)): of long inputs ||Q8 K8^T||^2 = <Q8^T Q8, K8^T K8> is summed instead.
/// Source: integer scores before the rest of a head, Jaradat 2024; int8 and the mean key after
/// Zhang et al. 2025 (SageAttention).
double integer_score_norm(const at::Tensor& queries, const at::Tensor& keys, double scale);

/// Multiply-adds of it, counted as 2 FLOPs each whatever their width.
double integer_score_flops(int64_t tokens, int64_t head_dim);

}  // namespace headkit
