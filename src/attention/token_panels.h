#pragma once

#include "kernels/kernel_table.h"

namespace headkit {

/// As `pack_tokens`, of any number of tokens: one panel after the other.
inline void pack_token_panels(const kernels::KernelTable& table,
                              const kernels::PackTokensParams& all) {
  kernels::PackTokensParams panel = all;
  for (int64_t first = 0; first < all.tokens; first += table.panel) {
    panel.x = all.rows == nullptr ? all.x + first * all.row_stride : all.x;
    panel.rows = all.rows == nullptr ? nullptr : all.rows + first;
    panel.panel = all.panel + first * all.width;
    panel.tokens = all.tokens - first < table.panel ? all.tokens - first : table.panel;
    table.pack_tokens(panel);
  }
}

}  // namespace headkit
