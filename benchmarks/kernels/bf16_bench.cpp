#include "kernels/level.h"

namespace headkit::kernels {
namespace {

// Random pairs of bfloat16 between 1/4 and 1 on either side of 0.
class Pairs {
 public:
  explicit Pairs(int64_t count) : memory_(count) {
    uint32_t state = 1;
    for (int64_t i = 0; i < count; ++i) {
      state = state * 1664525u + 1013904223u;
      data()[i] = (state & 0x80ff80ffu) | 0x3e803e80u;
    }
  }
  Bf16Pair* data() const { return reinterpret_cast<Bf16Pair*>(memory_.data()); }

 private:
  Floats memory_;
};

int64_t pairs_of(int64_t depth) { return (depth + 1) / 2; }

void add_projection(const Level& level, const std::string& suffix, bool rows, int64_t tokens,
                    int64_t width, int64_t head_dim) {
  const KernelTable* table = &level.table;
  const Bf16Kernels* bf16 = table->bf16;
  const std::string name = (rows ? "bf16_project_rows" : "bf16_project_panels") + suffix +
                           size("T", tokens) + size("D", width) + size("dh", head_dim);
  const int64_t weights =
      rows ? bf16->column_panel_pairs(head_dim, width) : bf16->block_pairs(head_dim, width);
  const int64_t out = rows ? pairs_of(tokens) * row_floats(*table, head_dim)
                           : panel_floats(*table, tokens, pairs_of(head_dim));
  add(level, name, 2.0 * tokens * width * head_dim, 0.0, [=] {
    return [=, x = std::make_shared<Pairs>(panel_floats(*table, tokens, pairs_of(width))),
            weights = std::make_shared<Pairs>(weights),
            bias = std::make_shared<Floats>(row_floats(*table, head_dim)),
            out = std::make_shared<Pairs>(out)] {
      const Bf16ProjectParams params{.tokens = x->data(),
                                     .weights = weights->data(),
                                     .bias = bias->data(),
                                     .out = out->data(),
                                     .num_tokens = tokens,
                                     .width = width,
                                     .head_dim = head_dim,
                                     .scale = 1.0f};
      rows ? bf16->project_rows(params) : bf16->project_panels(params);
    };
  });
}

void add_attention(const Level& level, const std::string& suffix, int64_t tokens,
                   int64_t head_dim) {
  const KernelTable* table = &level.table;
  const Bf16Kernels* bf16 = table->bf16;
  const int64_t panels = panel_floats(*table, tokens, pairs_of(head_dim));
  const int64_t values = pairs_of(tokens) * row_floats(*table, head_dim);
  add(level, "bf16_attend" + suffix + size("T", tokens) + size("dh", head_dim),
      4.0 * tokens * tokens * head_dim, 0.0, [=] {
        return [=, q = std::make_shared<Pairs>(panels), k = std::make_shared<Pairs>(panels),
                v = std::make_shared<Pairs>(values), context = std::make_shared<Pairs>(panels),
                scratch = std::make_shared<Floats>(bf16->attend_scratch_floats(tokens, head_dim))] {
          bf16->attend({.q = q->data(),
                        .k = k->data(),
                        .v = v->data(),
                        .context = context->data(),
                        .scratch = scratch->data(),
                        .scores = {},
                        .num_tokens = tokens,
                        .num_keys = tokens,
                        .head_dim = head_dim,
                        .context_stride = pairs_of(head_dim) * table->panel,
                        .gate = 1.0f});
        };
      });
}

void add_output(const Level& level, const std::string& suffix, int64_t heads, int64_t tokens,
                int64_t width, int64_t head_dim) {
  const KernelTable* table = &level.table;
  const Bf16Kernels* bf16 = table->bf16;
  const int64_t packed = bf16->column_panel_pairs(width, head_dim);
  const int64_t stride = heads * pairs_of(head_dim) * table->panel;
  add(level,
      "bf16_sum_projections" + suffix + size("heads", heads) + size("T", tokens) +
          size("D", width) + size("dh", head_dim),
      2.0 * tokens * width * head_dim * heads, 0.0, [=] {
        return [=,
                context =
                    std::make_shared<Pairs>(ceil_to(tokens, table->panel) / table->panel * stride),
                weights = std::make_shared<Pairs>(heads * packed),
                start = std::make_shared<Floats>(width),
                out = std::make_shared<Pairs>(pairs_of(tokens * width))] {
          const Bf16Pair* of_heads[16];
          for (int64_t head = 0; head < heads; ++head) {
            of_heads[head] = weights->data() + head * packed;
          }
          bf16->sum_projections({.context = context->data(),
                                 .weights = of_heads,
                                 .start = start->data(),
                                 .out = reinterpret_cast<Bf16*>(out->data()),
                                 .num_segments = heads,
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

void add_bf16(const Level& level) {
  for (const bool rows : {false, true}) add_projection(level, "/smoke", rows, 5, 24, 6);
  add_attention(level, "/smoke", 5, 6);
  add_output(level, "/smoke", 2, 5, 24, 6);
  for (const int64_t tokens : {32, 128, 512}) {
    for (const bool rows : {false, true}) add_projection(level, "", rows, tokens, 768, 64);
    add_attention(level, "", tokens, 64);
    for (const int64_t heads : {3, 12}) add_output(level, "", heads, tokens, 768, 64);
  }
}

}  // namespace headkit::kernels
