#include <ATen/ATen.h>

#include <algorithm>

#include "attention/kv_projection.h"
#include "attention/packed_weights.h"
#include "attention/row_projection.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

// Token panels of one task.
constexpr int64_t kTaskPanels = 4;

}  // namespace

std::pair<at::Tensor, at::Tensor> project_keys_values_cpu(const KvProblem& problem) {
  const at::Tensor& source = problem.source;
  const int64_t batch = source.size(0), length = source.size(1), heads = problem.heads,
                head_dim = problem.head_dim;
  const auto options = source.options().dtype(at::kFloat);
  at::Tensor results[2] = {at::empty({batch, heads, length, head_dim}, options),
                           at::empty({batch, heads, length, head_dim}, options)};
  if (results[0].numel() == 0) return {results[0], results[1]};
  const RowProjection rows(source, head_dim, problem.transform, 1.0);
  const std::shared_ptr<const PackedHeads> weights[2] = {
      packed_rows(problem.k_weight, problem.k_bias, heads, head_dim),
      packed_rows(problem.v_weight, problem.v_bias, heads, head_dim)};
  const at::Tensor open = problem.open.to_keep();
  thread_local Arena arena;
  float* tokens = arena.reserve(rows.token_floats());
  const int64_t panel = kernels::kernel_table().panel;
  run_queue(queue_threads(), rows.panels(), 0, [&](int64_t i, float*) { rows.pack(i, tokens); });

  const int64_t blocks = (rows.panels() + kTaskPanels - 1) / kTaskPanels;
  run_queue(queue_threads(), 2 * heads * blocks, kTaskPanels * panel * rows.row_floats(),
            [&](int64_t task, float* scratch) {
              const bool of_keys = task % 2 == 0;
              const int64_t head = task / 2 % heads, first = task / 2 / heads * kTaskPanels * panel;
              const int64_t count = std::min(kTaskPanels * panel, rows.rows() - first);
              const auto runs = [&](int64_t row) {
                return open.const_data_ptr<bool>()[row / length * heads + head];
              };
              bool any = false;
              for (int64_t row = first; row < first + count && !any; row += 1) any = runs(row);
              if (any) {
                rows.project(*weights[of_keys ? 0 : 1], head, tokens, first / panel, count, of_keys,
                             scratch);
              }
              float* result = results[of_keys ? 0 : 1].mutable_data_ptr<float>();
              for (int64_t row = first; row < first + count; ++row) {
                float* to =
                    result + ((row / length * heads + head) * length + row % length) * head_dim;
                if (runs(row)) {
                  std::copy_n(scratch + (row - first) * rows.row_floats(), head_dim, to);
                } else {
                  std::fill_n(to, head_dim, 0.0f);
                }
              }
            });
  const auto dtype = source.scalar_type();
  return {results[0].to(dtype), results[1].to(dtype)};
}

}  // namespace headkit
