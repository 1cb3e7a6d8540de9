#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "headkit/models/batch.h"

namespace headkit {

/// A loss per example, never a mean over the batch: scores must not depend on the batch size.
/// Throws std::invalid_argument for outputs or labels that do not fit, and for an example without a
/// token that counts.
class Objective {
 public:
  virtual ~Objective() = default;
  virtual std::string name() const = 0;
  /// `output` as the model's head gives it; `dense` the same from the model with all gates 1
  /// (undefined unless `needs_dense()`). Returns [B].
  virtual at::Tensor loss(const at::Tensor& output, const Batch& batch,
                          const at::Tensor& dense) const = 0;
  virtual bool needs_dense() const { return false; }
  /// True where the loss has its minimum at the dense model, so that every first-order score there
  /// is exactly zero.
  virtual bool stationary_at_dense() const { return false; }
};

/// Cross entropy (natural logarithm) of logits [B, C] against batch["labels"] [B]; of logits
/// [B, T, C] against labels [B, T] the mean over tokens, those labelled -100 left out.
std::shared_ptr<Objective> cross_entropy();
/// The same for a model that predicts the token after each: logits [B, T, V] at token t against
/// token t + 1 of batch["labels"] [B, T], those labelled -100 left out. Without labels, of
/// batch["input_ids"], where batch["attention_mask"] [B, T], if any, says that both are tokens.
std::shared_ptr<Objective> next_token();
/// The same for a decoder that is given its labels shifted: logits [B, T, V] at place t against
/// batch["labels"][:, t], those labelled -100 left out.
std::shared_ptr<Objective> seq2seq();
/// Minus the margin: best other logit - logit of batch["labels"]; shapes as for cross_entropy.
std::shared_ptr<Objective> margin();
/// KL(dense || gated) of the class distributions. Hinton, Vinyals, Dean 2015 for tau^2. Of logits
/// [B, T, C] the mean over tokens: those of batch["decoder_attention_mask"], else those that are
/// not labelled -100, else those of batch["attention_mask"], whichever is there as [B, T].
std::shared_ptr<Objective> kl_to_dense(double temperature = 1.0);
/// 1 - cosine(dense, gated) of vectors [B, E].
std::shared_ptr<Objective> cosine_to_dense();

/// By registry name: "cross_entropy", "next_token", "seq2seq", "margin", "kl_to_dense",
/// "cosine_to_dense".
std::shared_ptr<Objective> make_objective(const std::string& name);
std::vector<std::string> objective_names();

}  // namespace headkit
