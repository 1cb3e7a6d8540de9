#pragma once

#include <cstdint>

namespace headkit {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// The next multiple of `step`; of symbolic sizes too.
template <typename Size>
Size round_up(const Size& size, int64_t step) {
  return (size + (step - 1)) / step * step;
}

}  // namespace headkit
