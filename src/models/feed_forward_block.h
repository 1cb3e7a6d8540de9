#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "headkit/core/gate_set.h"
#include "headkit/core/head_layout.h"
#include "headkit/feed_forward/gated_feed_forward.h"
#include "headkit/models/gated_model.h"
#include "models/encoder_family.h"
#include "models/parameter_visitor.h"

namespace headkit {

/// The feed-forward block of an encoder's layer, as far as its neurons are left.
class FeedForwardBlock {
 public:
  /// `kept`: original indices of the neurons that are there, ascending.
  FeedForwardBlock(const HeadLayout& layout, int64_t layer, std::vector<int64_t> kept,
                   std::string activation);

  /// What the block adds to the residual stream under these gates: [B, T, D] -> [B, T, D].
  at::Tensor operator()(const at::Tensor& x, const GateSet& gates, Taps* taps) const;
  void visit(const std::string& layer, const FeedForwardNames& names,
             const ParameterVisitor& visitor);

  const FeedForwardWeights& weights() const { return weights_; }
  const std::vector<int64_t>& kept() const { return kept_; }
  /// Throws std::invalid_argument, with nothing replaced, unless neurons and weights fit.
  void check(const FeedForwardWeights& weights, const std::vector<int64_t>& kept) const;
  /// Puts weights in place that were checked.
  void replace(const FeedForwardWeights& weights, const std::vector<int64_t>& kept);

  bool open = true;  ///< whether it adds anything

 private:
  at::Tensor by_blocks(const at::Tensor& x, const GateSet& gates) const;
  at::Tensor by_neuron(const at::Tensor& x, const GateSet& gates, Taps* taps) const;

  HeadLayout layout_;
  int64_t layer_;
  std::vector<int64_t> kept_;
  std::string activation_;
  FeedForwardWeights weights_;
};

}  // namespace headkit
