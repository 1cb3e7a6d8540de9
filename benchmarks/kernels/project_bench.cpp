#include "kernels/level.h"

namespace headkit::kernels {
namespace {

// Panels of Q and K: weights are operand A. Rows of V: tokens are operand A.
void add_shape(const Level& level, const std::string& suffix, bool rows, int64_t tokens,
               int64_t width, int64_t head_dim) {
  const KernelTable* table = &level.table;
  const std::string name = (rows ? "project_rows" : "project_panels") + suffix + size("T", tokens) +
                           size("D", width) + size("dh", head_dim);
  const int64_t weight_floats =
      rows ? table->column_panel_floats(head_dim, width) : table->block_floats(head_dim, width);
  const int64_t out_floats =
      rows ? tokens * row_floats(*table, head_dim) : panel_floats(*table, tokens, head_dim);
  add(level, name, 2.0 * tokens * width * head_dim, 0.0, [=] {
    return [=, x = std::make_shared<Floats>(panel_floats(*table, tokens, width)),
            weights = std::make_shared<Floats>(weight_floats),
            bias = std::make_shared<Floats>(row_floats(*table, head_dim)),
            out = std::make_shared<Floats>(out_floats)] {
      const ProjectParams params{.tokens = x->data(),
                                 .weights = weights->data(),
                                 .bias = bias->data(),
                                 .out = out->data(),
                                 .num_tokens = tokens,
                                 .width = width,
                                 .head_dim = head_dim,
                                 .scale = 1.0f};
      rows ? table->project_rows(params) : table->project_panels(params);
    };
  });
}

}  // namespace

void add_project(const Level& level) {
  for (const bool rows : {false, true}) {
    add_shape(level, "/smoke", rows, 5, 24, 6);
    for (const int64_t tokens : {1, 16, 32, 77, 128, 512}) {
      add_shape(level, "", rows, tokens, 768, 64);
    }
    for (const int64_t head_dim : {32, 80, 96, 128}) add_shape(level, "", rows, 128, 768, head_dim);
    for (const int64_t width : {384, 1024}) add_shape(level, "", rows, 128, width, 64);
  }
}

}  // namespace headkit::kernels
