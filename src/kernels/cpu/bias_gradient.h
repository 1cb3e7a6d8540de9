#pragma once

#include "kernels/cpu/attend.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Keys of a block that is turned at a time.
constexpr int64_t kTurnedKeys = 64;

int64_t bias_gradient_scratch_floats() { return kPanel * kTurnedKeys; }

// Some queries of one panel and some keys, query by query: rows of the scratch.
void add_turned(const BiasGradientParams& p, const float* d_scores, int64_t first_token,
                int64_t tokens, int64_t first_key, int64_t count) {
  pack_transposed([d_scores](int64_t key) { return d_scores + key * kPanel; }, count, count, tokens,
                  p.scratch, kTurnedKeys);
  const int64_t first = p.key_position[first_key];
  const bool run = p.key_stride == 1 && p.key_position[first_key + count - 1] - first < count;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = p.scratch + t * kTurnedKeys;
    double* out = p.out + (first_token + t) * p.query_stride;
    if (run) {
      for (int64_t i = 0; i < count; ++i) out[first + i] += row[i];
    } else {
      for (int64_t i = 0; i < count; ++i) {
        out[p.key_position[first_key + i] * p.key_stride] += row[i];
      }
    }
  }
}

void bias_gradient(const BiasGradientParams& p) {
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    const float* panel = p.d_scores + token * p.num_keys;
    const int64_t tokens = panel_size(token, p.num_tokens);
    for (int64_t key = 0; key < p.num_keys; key += kTurnedKeys) {
      const int64_t left = p.num_keys - key;
      add_turned(p, panel + key * kPanel, token, tokens, key,
                 left < kTurnedKeys ? left : kTurnedKeys);
    }
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
