#pragma once

#include <ATen/core/Tensor.h>

#include "headkit/models/batch.h"

namespace headkit {

/// Whether `mask` is [B, T] of outputs [B, T, C].
bool is_token_mask(const at::Tensor& mask, const at::Tensor& output);

/// The tokens of outputs [B, T, C] that an objective without labels compares, bool [B, T]: those of
/// batch["decoder_attention_mask"], else those that are not labelled -100, else those of
/// batch["attention_mask"]. Undefined for outputs [B, C].
at::Tensor counted_tokens(const at::Tensor& output, const Batch& batch);

/// A tensor of a batch; undefined if it is not there.
at::Tensor batch_entry(const Batch& batch, const std::string& name);

/// The label of a token that does not count.
inline constexpr int64_t kIgnoredLabel = -100;

}  // namespace headkit
