#include "kernels/level.h"

namespace headkit::kernels {
namespace {

void add_tokens(const Level& level, const char* name, int64_t width) {
  const KernelTable* table = &level.table;
  const int64_t tokens = table->panel;
  add(level, name + size("D", width), 0.0, 8.0 * tokens * width, [=] {
    return [=, x = std::make_shared<Floats>(tokens * width),
            panel = std::make_shared<Floats>(tokens * width)] {
      table->pack_tokens({.x = x->data(),
                          .rows = nullptr,
                          .panel = panel->data(),
                          .row_stride = width,
                          .tokens = tokens,
                          .width = width});
    };
  });
}

void add_matrix(const Level& level, const char* name, bool columns, int64_t count, int64_t depth) {
  const KernelTable* table = &level.table;
  const int64_t floats =
      columns ? table->column_panel_floats(count, depth) : table->block_floats(count, depth);
  add(level, name + size("n", count) + size("D", depth), 0.0, 8.0 * count * depth, [=] {
    return [=, from = std::make_shared<Floats>(count * depth),
            packed = std::make_shared<Floats>(floats)] {
      const PackMatrixParams params{.from = from->data(),
                                    .packed = packed->data(),
                                    .stride = depth,
                                    .count = count,
                                    .depth = depth,
                                    .transposed = false};
      columns ? table->pack_column_panels(params) : table->pack_blocks(params);
    };
  });
}

}  // namespace

void add_packing(const Level& level) {
  add_tokens(level, "pack_tokens/smoke", 24);
  add_tokens(level, "pack_tokens", 768);
  add_matrix(level, "pack_blocks", false, 64, 768);
  add_matrix(level, "pack_column_panels", true, 64, 768);
  add_matrix(level, "pack_column_panels", true, 768, 64);
}

}  // namespace headkit::kernels
