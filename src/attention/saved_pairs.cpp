#include "attention/saved_pairs.h"

#include <ATen/ATen.h>

#include <string>

#include "headkit/core/error.h"
#include "kernels/dispatch.h"
#include "operators/backend.h"
#include "operators/rounding.h"

namespace headkit {
namespace {

// Whole panels and vectors of every level: the size must not depend on the machine.
constexpr int64_t kTokens = 48;
constexpr int64_t kLanes = 16;

// Offsets within what is kept of a pair, and of a KV head.
template <typename Size>
struct Layout {
  Size panels, key_panels, projected_q, projected_k, pair_floats, kv_floats;

  Layout(const Size& length, const Size& keys, const Size& head_dim, bool q_norm, bool k_norm) {
    const Size queries = round_up(length, kTokens), key_rows = round_up(keys, kTokens);
    panels = queries * head_dim;
    projected_q = panels * 2 + queries * 2;
    pair_floats = q_norm ? projected_q + panels : projected_q;
    key_panels = key_rows * head_dim;
    projected_k = key_panels + key_rows * round_up(head_dim, kLanes);
    kv_floats = k_norm ? projected_k + key_panels : projected_k;
  }
};

Layout<int64_t> layout_of(const AttentionProblem& problem) {
  return {problem.x.size(1), problem.num_keys, problem.head_dim,
          problem.q_transform.norm_weight.defined(), problem.k_transform.norm_weight.defined()};
}

}  // namespace

bool SavedPairs::kept(const AttentionCall& call) {
  if (call.x.scalar_type() != at::kFloat) return false;
  AttentionProblem problem;
  problem.x = call.x;
  problem.k = call.k;
  if (call.gate) problem.gate = *call.gate;
  problem.dropout_p = call.dropout_p;
  return choose_backend(problem).name == "cpu";
}

c10::SymInt SavedPairs::floats(const AttentionCall& call) {
  if (call.num_heads == 0) return 0;
  const c10::SymInt batch = call.x.sym_size(0), length = call.x.sym_size(1);
  const c10::SymInt keys = call.kv ? call.kv->sym_size(1) : length;
  const Layout<c10::SymInt> layout(length, keys, call.q_weight.sym_size(0) / call.num_heads,
                                   call.q_norm_weight.has_value(), call.k_norm_weight.has_value());
  const int64_t kv_heads = call.keys_given ? 0 : call.num_kv_heads.value_or(call.num_heads);
  return batch * (layout.pair_floats * call.num_heads + layout.kv_floats * kv_heads);
}

int64_t SavedPairs::floats(const AttentionProblem& problem) {
  const Layout<int64_t> layout = layout_of(problem);
  const int64_t kv_heads = problem.keys_given() ? 0 : problem.kv_heads;
  if (problem.heads == 0) return 0;
  return problem.x.size(0) * (problem.heads * layout.pair_floats + kv_heads * layout.kv_floats);
}

SavedPairs::SavedPairs(const AttentionProblem& problem, const at::Tensor& memory) {
  const kernels::KernelTable& table = kernels::kernel_table();
  TORCH_INTERNAL_ASSERT(kTokens % table.panel == 0 && kLanes % table.vector_length == 0);
  HEADKIT_CHECK(memory.scalar_type() == at::kFloat && memory.is_contiguous() &&
                    memory.device() == problem.x.device() && memory.numel() == floats(problem),
                "gated_attention_backward",
                "saved of the forward of this call, " + std::to_string(floats(problem)) +
                    " floats on the device of x",
                memory.numel(), " of dtype ", memory.scalar_type(), " on ", memory.device());
  const Layout<int64_t> layout = layout_of(problem);
  pairs_ = memory.mutable_data_ptr<float>();
  kv_ = pairs_ + problem.x.size(0) * problem.heads * layout.pair_floats;
  pair_floats_ = layout.pair_floats;
  kv_floats_ = layout.kv_floats;
  panels_ = layout.panels;
  key_panels_ = layout.key_panels;
  projected_q_ = layout.projected_q;
  projected_k_ = layout.projected_k;
}

}  // namespace headkit
