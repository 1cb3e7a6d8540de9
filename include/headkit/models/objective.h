#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "headkit/models/batch.h"

namespace headkit {

/// A loss per example, never a mean over the batch: scores must not depend on the batch size.
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

/// Cross entropy (natural logarithm) of logits [B, C] against batch["labels"] [B].
std::shared_ptr<Objective> cross_entropy();
/// Minus the margin: best other logit - logit of batch["labels"].
std::shared_ptr<Objective> margin();
/// KL(dense || gated) of the class distributions. Hinton, Vinyals, Dean 2015 for tau^2.
std::shared_ptr<Objective> kl_to_dense(double temperature = 1.0);
/// 1 - cosine(dense, gated) of vectors [B, E].
std::shared_ptr<Objective> cosine_to_dense();

/// By registry name: "cross_entropy", "margin", "kl_to_dense", "cosine_to_dense".
std::shared_ptr<Objective> make_objective(const std::string& name);
std::vector<std::string> objective_names();

}  // namespace headkit
