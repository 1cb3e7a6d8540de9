#pragma once

#include "kernels/cpu/bf16_tile.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// As `probe` of probe.h, on dot products of pairs.
double pair_probe(int64_t iterations) {
  constexpr int kChains = 16;
  Vec c[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) c[i] = broadcast(static_cast<float>(i));
  Pairs x = broadcast(Bf16Pair{0x3f7f3f7f}), y = broadcast(Bf16Pair{0x3a833a83});
  __asm__ volatile("" : "+v"(x.v), "+v"(y.v));
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
#pragma GCC unroll 16
      for (int i = 0; i < kChains; ++i) c[i] = multiply_pairs(x, y, c[i]);
#pragma GCC unroll 16
      for (int i = 0; i < kChains; ++i) keep_in_register(c[i]);
    }
  }
  return 4.0 * kLanes * kChains * 4.0 * static_cast<double>(iterations);
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
