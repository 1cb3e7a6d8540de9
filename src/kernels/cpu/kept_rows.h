#pragma once

#include "kernels/cpu/transposed.h"
#include "kernels/params.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Neurons of a block that are there. `Params` are HiddenParams or Bf16HiddenParams.
template <class Params>
HEADKIT_INLINE int64_t kept_neurons(const Params& p, int64_t block) {
  const int64_t left = p.kept.neurons - block * p.block_size;
  return left < p.block_size ? left : p.block_size;
}

HEADKIT_INLINE float* kept_row(const KeptRows& kept, float* of, int64_t row) {
  return of + (kept.rows == nullptr ? row : static_cast<int64_t>(kept.rows[row])) * kept.stride;
}

// panel [block][P] of the tokens from `token` on -> their rows of `to`.
template <class Params>
HEADKIT_INLINE void keep_panel(const Params& p, const float* panel, int64_t block, int64_t token,
                               float* to, float* scratch) {
  const int64_t neurons = kept_neurons(p, block), stride = row_floats(p.block_size);
  const int64_t count = panel_size(token, p.num_tokens);
  pack_transposed([panel](int64_t n) { return panel + n * kPanel; }, neurons, stride, count,
                  scratch, stride);
  for (int64_t t = 0; t < count; ++t) {
    float* row = kept_row(p.kept, to, token + t) + block * p.block_size;
    for (int64_t n = 0; n < neurons; ++n) row[n] = scratch[t * stride + n];
  }
}

HEADKIT_INLINE void pack_bias(const float* bias, int64_t count, int64_t padded, float* out) {
  for (int64_t i = 0; i < padded; ++i) out[i] = bias != nullptr && i < count ? bias[i] : 0.0f;
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
