#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "headkit/core/backend.h"

namespace headkit {

/// Weights of one feed-forward layer with F neurons, y = x W^T + b. Block j of neurons owns rows
/// j*size .. of `in`, `up` and their biases, and the same columns of `out`. Any bias may be
/// undefined.
struct FeedForwardWeights {
  at::Tensor in;                ///< [F, D]
  at::Tensor out;               ///< [D, F]
  at::Tensor up;                ///< [F, D] or undefined: multiplies what the activation gives
  at::Tensor in_bias, up_bias;  ///< [F]
  at::Tensor out_bias;          ///< [D]
};

/// Optional inputs of one call; unset members mean a plain dense layer.
///
///     auto y = gated_feed_forward(x, weights, FeedForwardInput().activation("silu").gate(g));
class FeedForwardInput {
 public:
  /// "gelu" (by the error function; default), "gelu_tanh", "relu" or "silu".
  FeedForwardInput& activation(std::string value);
  /// Neurons of a block, at least 1; default 32. The last block may have fewer.
  FeedForwardInput& block_size(int64_t value);
  /// [N] or [B, N] with N = ceil(F / block_size), float32 (float64 when x is float64). 0 = skipped,
  /// another value scales what the block adds.
  FeedForwardInput& gate(at::Tensor value);
  /// Instead of a gate: int64 [B], the number of leading blocks that run for each sample.
  FeedForwardInput& prefix(at::Tensor value);
  /// false = mask mode: closed blocks are computed and multiplied by 0, so that their gates receive
  /// gradients. Default true: the gate of a skipped block gets exactly 0.
  FeedForwardInput& skip(bool value);
  /// [N, D], dtype of x: what a closed block adds instead of nothing; a gate g gives
  /// g * output + (1 - g) * dropped_output.
  FeedForwardInput& dropped_output(at::Tensor value);

  std::string activation_ = "gelu";
  int64_t block_size_ = 32;
  std::optional<at::Tensor> gate_, prefix_, dropped_output_;
  bool skip_ = true;
};

/// A feed-forward layer in which a closed gate is work not done: a block of neurons that is skipped
/// for a sample costs nothing, forward and backward.
///
///     y[b, t] = out_bias + sum_j g[b, j] * (act(x W_in_j^T + b_in_j) [* (x W_up_j^T + b_up_j)])
///               W_out_j^T + (1 - g[b, j]) * dropped_output[j]
///
/// Args: x [B, T, D], float32, float64, bfloat16 or float16; all sizes may be 0. Returns [B, T, D],
/// dtype of x.
///
/// Differentiable once in x, weights, biases, gate and dropped_output.
///
/// Throws std::invalid_argument on shapes, dtypes or devices that do not fit, on an activation that
/// is not known and, on CPU, on a NaN or infinite gate or a prefix beyond [0, N];
/// std::runtime_error if the environment variable HEADKIT_BACKEND names a backend that cannot run
/// the call.
///
/// The same call is `torch.ops.headkit.gated_feed_forward` in Python.
///
/// Source: Hendrycks, Gimpel 2016 (GELU); Shazeer 2020 (gated variants).
at::Tensor gated_feed_forward(const at::Tensor& x, const FeedForwardWeights& weights,
                              const FeedForwardInput& input = {});

/// The backend that `gated_feed_forward` takes for such a call.
BackendChoice feed_forward_backend(const at::Tensor& x, const FeedForwardWeights& weights,
                                   const FeedForwardInput& input = {});

}  // namespace headkit
