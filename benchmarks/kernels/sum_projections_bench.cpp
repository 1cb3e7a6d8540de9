#include <vector>

#include "kernels/level.h"

namespace headkit::kernels {
namespace {

void add_shape(const Level& level, const std::string& suffix, int64_t segments, int64_t tokens,
               int64_t width, int64_t head_dim) {
  const KernelTable* table = &level.table;
  const std::string name = "sum_projections" + suffix + size("heads", segments) +
                           size("T", tokens) + size("D", width) + size("dh", head_dim);
  const int64_t stride = segments * head_dim * table->panel;
  const int64_t panels = ceil_to(tokens, table->panel) / table->panel;
  add(level, name, 2.0 * segments * head_dim * tokens * width, 0.0, [=] {
    auto packed = std::make_shared<std::vector<Floats>>();
    auto weights = std::make_shared<std::vector<const float*>>();
    for (int64_t i = 0; i < segments; ++i) {
      packed->emplace_back(table->column_panel_floats(width, head_dim));
      weights->push_back(packed->back().data());
    }
    return
        [=, context = std::make_shared<Floats>(panels * stride),
         start = std::make_shared<Floats>(width), out = std::make_shared<Floats>(tokens * width)] {
          static_cast<void>(packed);
          table->sum_projections({.context = context->data(),
                                  .weights = weights->data(),
                                  .start = start->data(),
                                  .out = out->data(),
                                  .num_segments = segments,
                                  .num_tokens = tokens,
                                  .width = width,
                                  .head_dim = head_dim,
                                  .context_stride = stride,
                                  .part = 0,
                                  .parts = 1});
        };
  });
}

}  // namespace

void add_sum_projections(const Level& level) {
  add_shape(level, "/smoke", 2, 5, 24, 6);
  for (const int64_t segments : {1, 3, 6, 12}) add_shape(level, "", segments, 128, 768, 64);
  for (const int64_t head_dim : {32, 80, 128}) add_shape(level, "", 6, 128, 768, head_dim);
}

}  // namespace headkit::kernels
