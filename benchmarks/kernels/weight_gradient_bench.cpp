#include <numeric>
#include <vector>

#include "kernels/level.h"

namespace headkit::kernels {
namespace {

struct Shape {
  int64_t samples, tokens, width = 768, head_dim = 64;
  bool transposed = false;
};

void add_shape(const Level& level, const std::string& suffix, const Shape& s) {
  const KernelTable* table = &level.table;
  const std::string name = "weight_gradient" + suffix + size("B", s.samples) + size("T", s.tokens) +
                           size("D", s.width) + size("dh", s.head_dim) +
                           (s.transposed ? "/transposed" : "");
  add(level, name, 2.0 * s.samples * s.tokens * s.width * s.head_dim, 0.0, [=] {
    const auto floats = [](int64_t count) { return std::make_shared<Floats>(count); };
    const int64_t columns_of_sample = table->column_panel_floats(s.width, s.tokens);
    auto samples = std::make_shared<std::vector<int32_t>>(s.samples);
    std::iota(samples->begin(), samples->end(), 0);
    return [=, rows = floats(s.samples * s.tokens * row_floats(*table, s.head_dim)),
            columns = floats(s.samples * columns_of_sample), out = floats(s.head_dim * s.width),
            bias = floats(s.head_dim),
            scratch = floats(table->weight_gradient_scratch_floats(s.head_dim))] {
      table->weight_gradient({.rows = rows->data(),
                              .columns = columns->data(),
                              .sample_index = samples->data(),
                              .out = out->data(),
                              .bias = s.transposed ? nullptr : bias->data(),
                              .scratch = scratch->data(),
                              .num_samples = s.samples,
                              .num_tokens = s.tokens,
                              .width = s.width,
                              .head_dim = s.head_dim,
                              .sample_stride = columns_of_sample,
                              .out_stride = s.transposed ? s.head_dim : s.width,
                              .transposed = s.transposed,
                              .add = false,
                              .part = 0,
                              .parts = 1});
    };
  });
}

}  // namespace

void add_weight_gradient(const Level& level) {
  add_shape(level, "/smoke", {.samples = 2, .tokens = 5, .width = 24, .head_dim = 6});
  for (const int64_t tokens : {32, 128}) {
    add_shape(level, "", {.samples = 8, .tokens = tokens});
    add_shape(level, "", {.samples = 8, .tokens = tokens, .transposed = true});
  }
  for (const int64_t head_dim : {32, 80, 128}) {
    add_shape(level, "", {.samples = 8, .tokens = 32, .head_dim = head_dim});
  }
}

}  // namespace headkit::kernels
