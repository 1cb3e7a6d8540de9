#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>

#include "attention/attention_call.h"
#include "attention/attention_problem.h"

namespace headkit {

/// What a forward on backend "cpu" keeps for its backward: of each open pair the projected queries,
/// the context before the gate and the softmax's maximum and sum, of each open KV head the
/// projected keys and values; with norms also what they took. In one float32 tensor with room for
/// every pair, in the order of the work lists of CpuPairs, so that its size is known without the
/// gates and memory beyond the open pairs is never touched. Layouts: kernels/params.h.
class SavedPairs {
 public:
  /// Whether the forward of a call keeps pairs: float32 on backend "cpu".
  static bool kept(const AttentionCall& call);
  /// Floats for a call, from its sizes alone.
  static c10::SymInt floats(const AttentionCall& call);
  static int64_t floats(const AttentionProblem& problem);

  /// Throws std::invalid_argument if `memory` is not that of such a problem.
  SavedPairs(const AttentionProblem& problem, const at::Tensor& memory);

  float* q(int64_t pair) const { return pairs_ + pair * pair_floats_; }
  float* context(int64_t pair) const { return q(pair) + panels_; }
  float* softmax(int64_t pair) const { return context(pair) + panels_; }
  float* projected_q(int64_t pair) const { return q(pair) + projected_q_; }
  float* k(int64_t kv) const { return kv_ + kv * kv_floats_; }
  float* v(int64_t kv) const { return k(kv) + key_panels_; }
  float* projected_k(int64_t kv) const { return k(kv) + projected_k_; }

 private:
  float *pairs_, *kv_;
  int64_t pair_floats_, kv_floats_, panels_, key_panels_, projected_q_, projected_k_;
};

}  // namespace headkit
