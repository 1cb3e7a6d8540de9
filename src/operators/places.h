#pragma once

#include <cstdint>

#include "operators/rounding.h"

namespace headkit {

/// Places of parts that lie one after the other in a workspace, each at the start of a cache line.
class Places {
 public:
  /// Where a part of so many floats begins.
  int64_t place(int64_t floats) {
    const int64_t at = floats_;
    floats_ += round_up(floats, kLine);
    return at;
  }
  /// Floats of all parts.
  int64_t floats() const { return floats_; }

 private:
  static constexpr int64_t kLine = 16;
  int64_t floats_ = 0;
};

}  // namespace headkit
