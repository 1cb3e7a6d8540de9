#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "headkit/attention/gated_attention.h"
#include "headkit/core/gate_set.h"
#include "headkit/core/head_layout.h"
#include "headkit/models/gated_model.h"
#include "models/encoder_family.h"
#include "models/parameter_visitor.h"

namespace headkit {

/// The attention block of an encoder's layer, as far as its heads are left.
class AttentionBlock {
 public:
  /// `kept`: original indices of the heads that are there, ascending.
  AttentionBlock(const HeadLayout& layout, int64_t layer, std::vector<int64_t> kept, bool qkv_bias);

  /// What the block adds to the residual stream under these gates: [B, T, D] -> [B, T, D]. `mask`:
  /// bool [B, T], true = token, or undefined.
  at::Tensor operator()(const at::Tensor& x, const at::Tensor& mask, const GateSet& gates,
                        Taps* taps) const;
  void visit(const std::string& layer, const AttentionNames& names,
             const ParameterVisitor& visitor);

  const AttentionWeights& weights() const { return weights_; }
  const std::vector<int64_t>& kept() const { return kept_; }
  /// Throws std::invalid_argument, with nothing replaced, unless heads and weights fit.
  void check(const AttentionWeights& weights, const std::vector<int64_t>& kept) const;
  /// Puts weights in place that were checked.
  void replace(const AttentionWeights& weights, const std::vector<int64_t>& kept);

  bool open = true;  ///< whether it adds anything

 private:
  void gate(AttentionInput& input, const at::Tensor& x, const GateSet& gates) const;

  HeadLayout layout_;
  int64_t layer_;
  bool qkv_bias_;
  std::vector<int64_t> kept_;
  AttentionWeights weights_;
};

}  // namespace headkit
