#pragma once

#include "kernels/cpu/vector.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Multiply-adds on registers alone. The accumulators are independent and more than the latency
// needs; the empty assembly keeps the compiler from merging or dropping them.
double probe(int64_t iterations) {
  constexpr int kChains = 12;
  Vec c[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) c[i] = broadcast(static_cast<float>(i));
  Vec x = broadcast(0.999f), y = broadcast(0.001f);
  keep_in_register(x);
  keep_in_register(y);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) c[i] = fma(x, y, c[i]);
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) keep_in_register(c[i]);
    }
  }
  return 2.0 * kLanes * kChains * 4.0 * static_cast<double>(iterations);
}

void exponential(const float* x, float* y, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, exponential(load(x + i)));
  if (i < count) {
    float buffer[kLanes];
    const int64_t used = count - i;
    for (int64_t j = 0; j < kLanes; ++j) buffer[j] = j < used ? x[i + j] : 0.0f;
    store(buffer, exponential(load(buffer)));
    for (int64_t j = 0; j < used; ++j) y[i + j] = buffer[j];
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
