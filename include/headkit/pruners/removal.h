#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "headkit/attention/gated_attention.h"
#include "headkit/core/gate_set.h"
#include "headkit/core/head_mask.h"
#include "headkit/feed_forward/gated_feed_forward.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// The weights of the heads `kept` (places within `weights`, ascending): their rows of q and
/// columns of o, and the rows of k and v of exactly the KV heads that they read, ascending; copied.
/// `kv_head`: the KV head of each head, places within k and v; default h / (H / Hkv).
/// `added_output` [D], where defined, is folded into the output bias, which is made where there was
/// none. Source: Michel, Levy, Neubig 2019.
AttentionWeights slice_heads(const AttentionWeights& weights, int64_t num_heads,
                             const std::vector<int64_t>& kept, const at::Tensor& added_output = {},
                             const std::optional<std::vector<int64_t>>& kv_head = std::nullopt);

/// The weights of the neurons `kept` (places within `weights`, ascending): their rows of `in` and
/// `up`, their columns of `out`; copied. `added_output` as in `slice_heads`.
FeedForwardWeights slice_neurons(const FeedForwardWeights& weights,
                                 const std::vector<int64_t>& kept,
                                 const at::Tensor& added_output = {});

/// Removes heads physically: what is outside `mask` (original indices) is cut from the weights of
/// `model`; a KV head goes with the last head that reads it. Heads that are gone already stay gone;
/// remove(A) then remove(B) equals both at once. `dropped_output` [L, H, D], where defined, is
/// folded into the output bias for every head that goes (mean compensation); otherwise removal
/// equals a gate of 0. Everything is built before anything is replaced; it happens whole or not at
/// all. Throws std::invalid_argument if the mask or `dropped_output` does not fit the model.
void remove_heads(GatedModel& model, const HeadMask& mask, const at::Tensor& dropped_output = {});

/// Removes everything that static gates close, and folds the rest of them into the weights: heads
/// and neurons (also by blocks) at 0 are cut, with a gate of g their columns of the output weight
/// are scaled by g, and (1 - g) times what they add when dropped goes into the output bias. A whole
/// attention or feed-forward block at 0 goes with its bias; it adds nothing and costs nothing. The
/// model then equals the one under the gates. Indices are original ones; what is gone stays gone,
/// so that hard gates can be given twice (soft ones would scale twice). It happens whole or not at
/// all. Throws std::invalid_argument on gates by sample, gates that do not fit the model, closed
/// dimensions of the residual stream, and dropped blocks of a model without output bias.
/// Source: Xia, Zhong, Chen 2022; Kwon et al. 2022.
void remove_units(GatedModel& model, const GateSet& gates);

}  // namespace headkit
