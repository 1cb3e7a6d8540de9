#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "headkit/gates/linear_probe.h"

namespace headkit {

/// Scalars that a linear gate may read beside the pooled state: "log_length" (logarithm of the
/// number of valid tokens), and of a probe before the same layer "margin", "entropy" and
/// "log_loss".
const std::vector<std::string>& scalar_features();
/// Throws std::invalid_argument for unknown or repeated names, and where `probe` (may be null) does
/// not say what they need.
void check_scalar_features(const char* operation, const std::vector<std::string>& names,
                           const LinearProbe* probe);

/// What a gate is linear in, double [B, D + S]: the pooled state, then the scalars `names`,
/// computed as pooled_state.h says. A sample without tokens gets `reference` [D + S] (undefined =
/// zeros).
at::Tensor gate_features(const char* operation, const std::vector<std::string>& names,
                         const LinearProbe* probe, const at::Tensor& hidden,
                         const at::Tensor& attention_mask, const at::Tensor& reference = {});
/// The same to rounding, differentiable in `hidden`, on its device: for training.
at::Tensor differentiable_gate_features(const std::vector<std::string>& names,
                                        const LinearProbe* probe, const at::Tensor& hidden,
                                        const at::Tensor& attention_mask,
                                        const at::Tensor& reference);

}  // namespace headkit
