#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "attention/backward_group.h"
#include "attention/backward_problem.h"
#include "attention/bias_sum.h"
#include "attention/packed_weights.h"
#include "kernels/params.h"
#include "operators/places.h"

namespace headkit {

/// The first stage of a backward: pairs. From the gradient of the output and what the forward kept
/// it makes the gradients of projected queries, keys and values, which it leaves in the group for
/// the sums, and those that no sum follows: of gates, given keys and values, additive bias, norms.
/// A task is one KV head of one sample with the pairs that read it.
class PairBackward {
 public:
  PairBackward(const BackwardProblem& problem, const GradientMask& mask);

  /// The tasks from here on are those of `group`, which must outlive them.
  void begin(const BackwardGroup& group);
  int64_t scratch_floats() const { return scratch_.floats(); }
  /// One entry of BackwardGroup::tasks(), on any thread.
  void run(int64_t kv, float* scratch);

  /// <dOut W_O, context> of each pair, [B, H]; 0 for closed ones.
  const at::Tensor& of_pairs() const { return of_pairs_; }
  /// Puts its gradients, after all groups.
  void put(DifferentiableTensors& gradients) const;

 private:
  const float* find_keys(int64_t kv, float* scratch) const;
  void run_pair(int64_t pair, int64_t sample, const float* k, float* scratch);
  void transform_keys(int64_t kv, float* scratch) const;
  void write_given(int64_t kv, const float* scratch);
  kernels::TransformBackwardParams transform(const at::Tensor& norm, const at::Tensor& norm_sums,
                                             int64_t row, const float* projected,
                                             const float* angles, float* panels, int64_t stride,
                                             int64_t count) const;

  const BackwardProblem& p_;
  const PackedHeads output_;
  at::Tensor of_pairs_, q_norm_sums_, k_norm_sums_, of_k_, of_v_;
  std::unique_ptr<BiasSum> bias_sum_;
  const BackwardGroup* group_ = nullptr;
  Places scratch_;
  int64_t u_ = 0, given_k_ = 0, k_rows_ = 0, v_panels_ = 0, dk_ = 0, dv_ = 0, dk_panels_ = 0,
          d_scores_ = 0, turned_ = 0, attend_ = 0;
};

}  // namespace headkit
