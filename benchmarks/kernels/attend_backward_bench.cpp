#include "kernels/level.h"

namespace headkit::kernels {
namespace {

void add_shape(const Level& level, const std::string& suffix, int64_t tokens, int64_t head_dim) {
  const KernelTable* table = &level.table;
  const int64_t row = row_floats(*table, head_dim), dh = head_dim;
  const int64_t panels = panel_floats(*table, tokens, dh);
  const std::string name = "attend_backward" + suffix + size("T", tokens) + size("dh", dh);
  // Five products: the scores again, and what goes to the probabilities, queries, keys and values.
  add(level, name, 10.0 * tokens * tokens * dh, 0.0, [=] {
    const auto floats = [](int64_t count) { return std::make_shared<Floats>(count); };
    return [=, q = floats(panels), k = floats(panels), k_rows = floats(tokens * row),
            v_panels = floats(panels), context = floats(panels),
            softmax = floats(2 * ceil_to(tokens, table->panel)), u = floats(panels),
            dq = floats(panels), context_rows = floats(tokens * row), dk = floats(tokens * row),
            dv = floats(tokens * row), gate_gradient = floats(1),
            scratch = floats(table->attend_backward_scratch_floats(tokens, dh))] {
      table->attend_backward({.q = q->data(),
                              .k = k->data(),
                              .k_rows = k_rows->data(),
                              .v_panels = v_panels->data(),
                              .context = context->data(),
                              .softmax = softmax->data(),
                              .u = u->data(),
                              .dq = dq->data(),
                              .context_rows = context_rows->data(),
                              .dk = dk->data(),
                              .dv = dv->data(),
                              .d_scores = nullptr,
                              .gate_gradient = gate_gradient->data(),
                              .scratch = scratch->data(),
                              .scores = {},
                              .num_tokens = tokens,
                              .num_keys = tokens,
                              .head_dim = dh,
                              .dq_stride = dh * table->panel,
                              .gate = 1.0f,
                              .scale = 1.0f,
                              .of_scores = true});
    };
  });
}

}  // namespace

void add_attend_backward(const Level& level) {
  add_shape(level, "/smoke", 5, 6);
  for (const int64_t tokens : {32, 128, 512}) add_shape(level, "", tokens, 64);
  for (const int64_t head_dim : {32, 80, 128}) add_shape(level, "", 128, head_dim);
}

}  // namespace headkit::kernels
