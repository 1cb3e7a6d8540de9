#include "kernels/level.h"

namespace headkit::kernels {
namespace {

struct Shape {
  int64_t tokens, keys, head_dim = 64;
  bool causal = false, smoke = false;
};

void add_shape(const Level& level, const Shape& shape) {
  const KernelTable* table = &level.table;
  const int64_t dh = shape.head_dim, row = row_floats(*table, dh);
  // A query of a causal row sees half of the keys, its own position included.
  const double pairs = shape.causal ? 0.5 * shape.tokens * (shape.tokens + 1)
                                    : static_cast<double>(shape.tokens) * shape.keys;
  const std::string name = std::string("attend") + (shape.smoke ? "/smoke" : "") +
                           size("T", shape.tokens) + size("S", shape.keys) + size("dh", dh) +
                           (shape.causal ? "/causal" : "");
  add(level, name, 4.0 * pairs * dh, 0.0, [=] {
    return [=, q = std::make_shared<Floats>(panel_floats(*table, shape.tokens, dh)),
            k = std::make_shared<Floats>(panel_floats(*table, shape.keys, dh)),
            v = std::make_shared<Floats>(shape.keys * row),
            context = std::make_shared<Floats>(panel_floats(*table, shape.tokens, dh)),
            scratch = std::make_shared<Floats>(table->attend_scratch_floats(shape.keys))] {
      table->attend({.q = q->data(),
                     .k = k->data(),
                     .v = v->data(),
                     .context = context->data(),
                     .own_context = nullptr,
                     .softmax = nullptr,
                     .scratch = scratch->data(),
                     .scores = {.key_position = nullptr,
                                .bias = nullptr,
                                .bias_query_stride = 0,
                                .bias_key_stride = 0,
                                .query_offset = 0,
                                .window = 0,
                                .causal = shape.causal},
                     .num_tokens = shape.tokens,
                     .num_keys = shape.keys,
                     .head_dim = dh,
                     .v_stride = row,
                     .context_stride = dh * table->panel,
                     .gate = 1.0f});
    };
  });
}

}  // namespace

void add_attend(const Level& level) {
  add_shape(level, {.tokens = 5, .keys = 7, .head_dim = 6, .smoke = true});
  for (const int64_t tokens : {32, 128, 512, 2048}) {
    add_shape(level, {.tokens = tokens, .keys = tokens});
  }
  for (const int64_t head_dim : {32, 80, 128}) {
    add_shape(level, {.tokens = 128, .keys = 128, .head_dim = head_dim});
  }
  add_shape(level, {.tokens = 512, .keys = 512, .causal = true});
  add_shape(level, {.tokens = 1, .keys = 2048});
}

}  // namespace headkit::kernels
