#include <vector>

#include "kernels/level.h"

namespace headkit::kernels {
namespace {

void add_shape(const Level& level, const std::string& suffix, int64_t blocks, int64_t tokens,
               int64_t width, int64_t block_size, bool gated) {
  const KernelTable* table = &level.table;
  const std::string name = "feed_forward_hidden" + suffix + size("blocks", blocks) +
                           size("T", tokens) + size("D", width) + size("block", block_size) +
                           (gated ? "/silu_gated" : "/gelu");
  const int64_t floats = table->packed_block_floats(width, block_size, gated);
  const int64_t stride = blocks * block_size * table->panel;
  const int64_t panels = ceil_to(tokens, table->panel) / table->panel;
  add(level, name, (gated ? 4.0 : 2.0) * blocks * block_size * tokens * width, 0.0, [=] {
    auto index = std::make_shared<std::vector<int32_t>>();
    for (int64_t i = 0; i < blocks; ++i) index->push_back(static_cast<int32_t>(i));
    return [=, x = std::make_shared<Floats>(panel_floats(*table, tokens, width)),
            packed = std::make_shared<Floats>(blocks * floats),
            scale = std::make_shared<Floats>(blocks),
            hidden = std::make_shared<Floats>(panels * stride),
            scratch = std::make_shared<Floats>(table->hidden_scratch_floats(block_size))] {
      table->feed_forward_hidden({.tokens = x->data(),
                                  .packed = packed->data(),
                                  .block_index = index->data(),
                                  .scale = scale->data(),
                                  .hidden = hidden->data(),
                                  .scratch = scratch->data(),
                                  .num_blocks = blocks,
                                  .num_tokens = tokens,
                                  .width = width,
                                  .block_size = block_size,
                                  .hidden_stride = stride,
                                  .activation = gated ? Activation::kSilu : Activation::kGelu,
                                  .gated = gated});
    };
  });
}

}  // namespace

void add_feed_forward(const Level& level) {
  add_shape(level, "/smoke", 2, 5, 24, 6, true);
  for (const int64_t blocks : {1, 24, 96}) add_shape(level, "", blocks, 128, 768, 32, false);
  add_shape(level, "", 48, 128, 576, 32, true);
}

}  // namespace headkit::kernels
