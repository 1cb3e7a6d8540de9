#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "headkit/core/head_layout.h"

namespace headkit {

/// KV heads that run where these heads are active, summed over layers: `active` bool [..., L', H]
/// of some layers; int64 [...], CPU. A KV head runs for a sample when any of its query heads does.
at::Tensor active_kv_heads(const HeadLayout& layout, const at::Tensor& active);

/// FLOPs (multiply-add = 2) that an ideal skipper spends on `active_heads` heads of one sample with
/// `tokens` tokens, whose keys and values come from `active_kv_heads` KV heads: 4 * T * dh * (D +
/// T) a head (projections of Q and O 4*T*D*dh, core 4*T^2*dh) and 4 * T * dh * D a KV head. Without
/// `active_kv_heads` each head has its own; in a layout of shared KV heads the most that one run
/// can need.
double attention_flops(const HeadLayout& layout, double active_heads, int64_t tokens,
                       std::optional<double> active_kv_heads = std::nullopt);

/// FLOPs of one feed-forward block (two linear maps) for one sample: 4 * T * D * F.
double feed_forward_flops(const HeadLayout& layout, int64_t tokens);

/// FLOPs of a whole encoder for one sample: `active_heads` heads over all layers and every
/// feed-forward block. Embeddings, norms, softmax and the task head are not counted.
double encoder_flops(const HeadLayout& layout, double active_heads, int64_t tokens,
                     std::optional<double> active_kv_heads = std::nullopt);

/// How much of an encoder runs for one sample: heads, the KV heads that these read, neurons, each
/// over all layers and runs.
struct UnitCounts {
  double heads = 0;
  double kv_heads = 0;
  double neurons = 0;  ///< of feed-forward blocks of two linear maps
};
/// FLOPs of such a run for one sample with `tokens` tokens, a mean where lengths differ.
double unit_flops(const HeadLayout& layout, const UnitCounts& counts, double tokens);

/// What one unit costs, where units of a kind cost the same: total = fixed + heads * head + neurons
/// * neuron.
struct UnitCosts {
  double head = 0;
  double neuron = 0;
  double fixed = 0;  ///< of what goes with no single unit
  double total(double heads, double neurons) const {
    return fixed + heads * head + neurons * neuron;
  }
};

/// Multiply-accumulates (FLOPs = 2 MACs) of one sample with `tokens` tokens, a mean where lengths
/// differ: a head 3 T D dh + 2 T^2 dh + T dh D, a neuron `matrices` * T D (2 linear maps, 3 in a
/// gated block). Where heads share KV heads these are `fixed`, counted whether or not a head that
/// reads them is left. Causal models are counted densely; embeddings, biases, norms, softmax and
/// the task head are not counted. Throws std::invalid_argument unless `tokens` > 0 and `matrices`
/// is 2 or 3.
UnitCosts unit_macs(const HeadLayout& layout, double tokens, int64_t matrices = 2);
/// Weights of a unit, biases left out: a head 4 dh D, a neuron `matrices` * D; KV heads as above.
UnitCosts unit_parameters(const HeadLayout& layout, int64_t matrices = 2);

}  // namespace headkit
