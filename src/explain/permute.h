#pragma once

#include <cstdint>
#include <random>
#include <utility>

#include "scorers/resampling.h"

namespace headkit {

/// Puts entries in a random order, the same with every standard library.
template <typename Entries>
void permute(std::mt19937_64& random, Entries& entries) {
  for (auto left = static_cast<int64_t>(entries.size()); left > 1; --left) {
    std::swap(entries[static_cast<size_t>(left - 1)],
              entries[static_cast<size_t>(draw_below(random, left))]);
  }
}

}  // namespace headkit
