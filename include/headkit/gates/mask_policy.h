#pragma once

#include "headkit/core/head_mask.h"
#include "headkit/gates/gate_policy.h"

namespace headkit {

/// A static mask as a policy: the same heads for every input. Costs nothing to decide.
class MaskPolicy final : public GatePolicy {
 public:
  /// `dropped_output` [L, H, D] or undefined: what a closed head adds instead of nothing.
  explicit MaskPolicy(HeadMask mask, at::Tensor dropped_output = {});
  std::string name() const override { return "mask"; }
  GateSet decide(const GateInput& input, State& state) const override;
  std::string to_json() const override;
  static std::shared_ptr<MaskPolicy> from_json(const std::string& text);

  const HeadMask& mask() const { return mask_; }
  const at::Tensor& dropped_output() const { return dropped_output_; }

 private:
  HeadMask mask_;
  at::Tensor dropped_output_;
};

}  // namespace headkit
