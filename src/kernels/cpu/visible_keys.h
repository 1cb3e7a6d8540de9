#pragma once

#include "kernels/cpu/transposed.h"
#include "kernels/params.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

const float kMinusInfinity = -__builtin_inff();

// Keys [begin, end) that some query of a panel may see; `begin` is at the start of a key panel.
struct VisibleKeys {
  int64_t begin, end;
};

HEADKIT_INLINE int64_t position_of(const ScoreParams& p, int64_t key) {
  return p.key_position == nullptr ? key : p.key_position[key];
}

HEADKIT_INLINE VisibleKeys visible_keys(const ScoreParams& p, int64_t num_keys, int64_t first_token,
                                        int64_t tokens) {
  const int64_t first = p.query_offset + first_token, last = first + tokens - 1;
  VisibleKeys keys{0, num_keys};
  if (p.causal) {
    while (keys.end > 0 && position_of(p, keys.end - 1) > last) --keys.end;
  }
  if (p.window > 0) {
    while (keys.end > 0 && position_of(p, keys.end - 1) - last >= p.window) --keys.end;
    while (keys.begin < keys.end && first - position_of(p, keys.begin) >= p.window) ++keys.begin;
    if (keys.begin == keys.end) return {0, 0};
    keys.begin = keys.begin / kPanel * kPanel;
  }
  return keys;
}

// Adds term(bias) to `count` rows of scores; `buffer` has room for as many.
template <int NV, class Term>
void add_bias(const ScoreParams& p, int64_t first_token, int64_t tokens, int64_t first_key,
              int64_t count, float* scores, float* buffer, const Term& term) {
  const float* from = p.bias + first_token * p.bias_query_stride;
  const int64_t first = position_of(p, first_key);
  if (p.bias_key_stride != 1 || position_of(p, first_key + count - 1) - first >= count) {
    for (int64_t r = 0; r < count; ++r) {
      const float* column = from + position_of(p, first_key + r) * p.bias_key_stride;
      float* to = buffer + r * kPanel;
      for (int64_t t = 0; t < tokens; ++t) to[t] = column[t * p.bias_query_stride];
      for (int64_t t = tokens; t < NV * kLanes; ++t) to[t] = 0.0f;
    }
  } else {
    const auto row = [&](int64_t t) { return from + t * p.bias_query_stride + first; };
    pack_transposed(row, tokens, NV * kLanes, count, buffer, kPanel);
  }
  for (int64_t r = 0; r < count; ++r) {
    for (int j = 0; j < NV; ++j) {
      float* at = scores + r * kPanel + j * kLanes;
      store(at, add(load(at), term(load(buffer + r * kPanel + j * kLanes))));
    }
  }
}

// The bias as it is. A type, because a function's address would be called.
struct SameBias {
  HEADKIT_INLINE Vec operator()(Vec bias) const { return bias; }
};

// Hides the keys that a query may not see.
template <int NV>
void hide_keys(const ScoreParams& p, int64_t first_token, int64_t first_key, int64_t count,
               float* scores) {
  if (!p.causal && p.window == 0) return;
  for (int64_t r = 0; r < count; ++r) {
    // Lanes [low, high) see the key.
    const int64_t ahead = position_of(p, first_key + r) - p.query_offset - first_token;
    int64_t low = p.causal ? ahead : 0, high = NV * kLanes;
    if (p.window > 0) {
      if (ahead - p.window + 1 > low) low = ahead - p.window + 1;
      if (ahead + p.window < high) high = ahead + p.window;
    }
    if (low > NV * kLanes) low = NV * kLanes;
    float* to = scores + r * kPanel;
    for (int64_t lane = 0; lane < low; ++lane) to[lane] = kMinusInfinity;
    for (int64_t lane = high < 0 ? 0 : high; lane < NV * kLanes; ++lane) to[lane] = kMinusInfinity;
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
