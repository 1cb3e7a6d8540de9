#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include "cpp/kernels/kernel_problem.h"

namespace headkit::kernels {

inline Bf16 to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<Bf16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_bf16(Bf16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}
inline double rounded(double value) { return from_bf16(to_bf16(static_cast<float>(value))); }

inline std::vector<Bf16> in_bf16(const std::vector<float>& values) {
  std::vector<Bf16> narrow(values.size());
  std::transform(values.begin(), values.end(), narrow.begin(), to_bf16);
  return narrow;
}

inline Bf16Pair* pairs(Floats& floats) { return reinterpret_cast<Bf16Pair*>(floats.data()); }
inline const Bf16Pair* pairs(const Floats& floats) {
  return reinterpret_cast<const Bf16Pair*>(floats.data());
}
inline Bf16 half(const Floats& floats, int64_t pair, int64_t which) {
  return static_cast<Bf16>(std::bit_cast<uint32_t>(floats[pair]) >> 16 * which);
}
inline int64_t pairs_of(int64_t depth) { return (depth + 1) / 2; }

inline std::vector<int> bf16_levels() {
  std::vector<int> levels;
  for (int i = 0; i < isa_count(); ++i) {
    if (kernel_table_at(i).bf16 != nullptr) levels.push_back(i);
  }
  return levels;
}

}  // namespace headkit::kernels
