#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "headkit/explain/head_explanation.h"
#include "headkit/gates/linear_logits.h"

namespace headkit {

/// How far a decision is from the other one.
struct GateCut {
  /// Threshold: logit - threshold. Top k: logit - that of the best closed rival if open, of the
  /// worst open rival if closed. Budget: the same of logit / cost. Null without a rival.
  std::optional<double> margin;
  /// |margin| over the norm of what it is linear by (w_h, or w_h - w_r against a rival): how far
  /// the feature vector would have to move. Null where that norm is 0.
  std::optional<double> distance;
  std::optional<int64_t> rank;    ///< 1 = the best of the heads that are decided
  std::vector<RivalHead> rivals;  ///< worst open and best closed head, the head itself left out
};

/// Why each head of one decision is open or closed for one sample: its logit taken apart exactly,
/// by token, by feature and by both.
///
/// With n valid tokens, token states x_t and mean f: by token W_D (x_t - mu_D) / n and a part a
/// scalar; by feature W_k (f_k - mu_k); jointly W_k (x_tk - mu_k) / n. Each set of parts and the
/// base sum to the logit. Scalars are parts of no token, whatever they are computed from.
/// O(M T (D + T)), more only for `joint`.
class GateDecomposition {
 public:
  /// `hidden` [T, D], `valid` bool [T] or undefined. Throws std::invalid_argument on shapes that do
  /// not fit, and NaN or infinity in a valid token.
  GateDecomposition(LinearLogits gate, const at::Tensor& hidden, const at::Tensor& valid = {});

  const LinearLogits& gate() const { return gate_; }
  const std::vector<int64_t>& tokens() const { return tokens_; }  ///< positions of valid tokens
  const at::Tensor& logits() const { return logits_; }     ///< double [M], as the gate has it
  const std::vector<char>& open() const { return open_; }  ///< 1 = open, [M]
  const at::Tensor& token_parts() const { return token_parts_; }      ///< double [M, valid tokens]
  at::Tensor scalar_parts() const;                                    ///< double [M, S]
  const at::Tensor& feature_parts() const { return feature_parts_; }  ///< double [M, D + S]
  at::Tensor joint(int64_t index) const;  ///< double [valid tokens, D] of one of the M heads
  /// Largest |logit - (base + parts)| of head `index` over the three sets of parts.
  double residual(int64_t index) const;

  GateCut cut(int64_t index) const;
  /// Null for a head that is not decided for each input.
  std::optional<GateFlip> flip(int64_t index) const;
  /// Share of ||f_D - mu_D||^2 in the row space of W_D: what is outside moves none of these heads.
  /// Null where the state is at the reference.
  std::optional<double> control_share() const;
  /// The gate's decision with the states of these tokens at the reference mean.
  std::vector<char> open_without(const std::vector<int64_t>& tokens,
                                 at::Tensor* logits = nullptr) const;

 private:
  std::optional<int64_t> rival(int64_t index) const;
  std::vector<int64_t> fewest_to_cross() const;
  bool floor_needs(int64_t tokens) const;

  LinearLogits gate_;
  at::Tensor hidden_, valid_;  // double [T, D], bool [T]
  std::vector<int64_t> tokens_;
  at::Tensor features_, logits_, token_parts_, feature_parts_;
  std::vector<char> open_;
};

}  // namespace headkit
