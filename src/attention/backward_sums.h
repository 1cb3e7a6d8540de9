#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "attention/backward_group.h"
#include "attention/backward_problem.h"
#include "attention/input_weight.h"

namespace headkit {

/// The second stage of a backward: the gradients that sum over pairs, those of the weights and
/// biases (over samples) and of the inputs (over heads). Every sum runs over its pairs in a fixed
/// order.
class BackwardSums {
 public:
  BackwardSums(const BackwardProblem& problem, const GradientMask& mask);

  /// Whether the gradient of a weight or of its bias is made, which reads column panels of the
  /// input, or of the gradient of the output.
  bool makes(Matrix matrix) const { return weight_[matrix].defined(); }

  /// The tasks from here on are those of `group`, whose pairs are done; it must outlive them.
  void begin(const BackwardGroup& group);
  int64_t tasks() const { return weight_tasks_ + query_tasks_ + source_tasks_; }
  int64_t scratch_floats() const;
  /// A task of the group, on any thread.
  void run(int64_t task, float* scratch);

  /// Puts its gradients, after all groups.
  void put(DifferentiableTensors& gradients) const;

 private:
  void clear_idle_heads();
  void pack_weights();
  void sum_weight(int64_t task, float* scratch);
  void sum_input(Differentiable input, int64_t place, int64_t block);
  int64_t input_panels() const;
  int64_t input_blocks(int64_t panels) const;

  const BackwardProblem& p_;
  const GradientMask mask_;
  at::Tensor of_x_, of_kv_, weight_[kMatrices], bias_[3];
  std::optional<InputWeight> q_weight_, k_weight_, v_weight_;
  // What the gradient of an input sums over: by sample, in the order of its panels.
  std::vector<const float*> query_weights_, key_weights_;
  std::vector<int64_t> query_weight_offset_;  // [B]
  const BackwardGroup* group_ = nullptr;
  int64_t weight_tasks_ = 0, query_tasks_ = 0, source_tasks_ = 0;
};

}  // namespace headkit
