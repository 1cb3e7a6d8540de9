#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "headkit/core/head_layout.h"
#include "headkit/core/head_mask.h"
#include "headkit/gates/decision_rule.h"
#include "headkit/gates/linear_probe.h"

namespace headkit {

class GatePolicy;

/// One decision of a gate whose logits are linear: z = base + W (f - mu) with f the mean state over
/// the valid tokens and scalars beside it (gate_features.h). What explanations take apart.
struct LinearLogits {
  int64_t layer = 0;          ///< decided from the state before it
  std::vector<HeadId> heads;  ///< M heads, decided together
  at::Tensor weight;          ///< W, double [M, D + S]
  at::Tensor reference;       ///< mu, double [D + S]
  at::Tensor base;            ///< double [M]: b + W mu
  DecisionRule rule{};
  std::string reference_name = "calibration_mean";  ///< what mu is
  std::vector<std::string> features{};              ///< S scalars
  std::optional<LinearProbe> probe{};               ///< where a scalar needs one

  /// Throws std::invalid_argument unless all of it fits together.
  void check(const char* operation) const;
  int64_t width() const;  ///< D
  /// f, double [B, D + S], from hidden [B, T, D] and bool mask [B, T] (may be undefined).
  at::Tensor features_of(const at::Tensor& hidden, const at::Tensor& attention_mask) const;
  /// z, double [B, M], bit for bit what the gate decides by.
  at::Tensor logits(const at::Tensor& hidden, const at::Tensor& attention_mask) const;
  /// The same decision in a model where only some heads are there; an empty mask = all.
  LinearLogits in(const HeadMask& present) const;
};

/// The decisions of a policy whose logits are linear, by layer: those of a LinearGate or LayerGate,
/// with a calibration or without. Empty for policies that have none.
std::vector<LinearLogits> linear_logits(const GatePolicy& policy);

}  // namespace headkit
