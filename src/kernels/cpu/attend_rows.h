#pragma once

#include "kernels/cpu/attend.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Keys that are scored and weighed at a time: K and V of a head of 64 fit into a first-level cache.
constexpr int64_t kRowBlock = 64;

int64_t attend_rows_scratch_floats() { return kRowBlock; }

// The first `count` elements, zero behind them.
template <class Element>
HEADKIT_INLINE Vec load_first(const Element* p, int64_t count) {
  Element lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <class Element>
HEADKIT_INLINE int64_t key_row(const AttendRowsParams<Element>& p, int64_t key) {
  return p.key_rows == nullptr ? key : p.key_rows[key];
}

// Fetches a row of the next block while this one is worked on.
template <class Element>
HEADKIT_INLINE void fetch_ahead(const Element* row, int64_t stride, int64_t head_dim) {
  constexpr int64_t kElements = kLine * sizeof(float) / sizeof(Element);
  for (int64_t d = 0; d < head_dim; d += kElements) {
    __builtin_prefetch(row + kRowBlock * stride + d);
  }
}

// scores [count] = K q for keys from `first`.
template <class Element>
HEADKIT_INLINE void score_rows(const AttendRowsParams<Element>& p, const float* q, int64_t first,
                               int64_t count, float* scores) {
  constexpr int64_t kTogether = 4;
  for (int64_t i = 0; i < count; i += kTogether) {
    const Element* rows[kTogether];
    for (int64_t u = 0; u < kTogether; ++u) {
      const int64_t key = first + (i + u < count ? i + u : count - 1);
      rows[u] = p.k + key_row(p, key) * p.k_stride;
      fetch_ahead(rows[u], p.k_stride, p.head_dim);
      fetch_ahead(p.v + key_row(p, key) * p.v_stride, p.v_stride, p.head_dim);
    }
    Vec sum[kTogether];
    for (Vec& s : sum) s = zero();
    int64_t d = 0;
    for (; d + kLanes <= p.head_dim; d += kLanes) {
      const Vec x = load(q + d);
#pragma GCC unroll 4
      for (int u = 0; u < kTogether; ++u) sum[u] = fma(x, load(rows[u] + d), sum[u]);
    }
    if (d < p.head_dim) {
      const Vec x = load_first(q + d, p.head_dim - d);
      for (int u = 0; u < kTogether; ++u) {
        sum[u] = fma(x, load_first(rows[u] + d, p.head_dim - d), sum[u]);
      }
    }
    for (int u = 0; u < kTogether && i + u < count; ++u) scores[i + u] = sum_lanes(sum[u]);
  }
}

// Adds the bias, and hides what query `query` may not see.
template <class Element>
HEADKIT_INLINE void finish_row(const AttendRowsParams<Element>& p, int64_t query, int64_t first,
                               int64_t count, float* scores) {
  const ScoreParams& s = p.scores;
  const int64_t at = s.query_offset + p.tokens[query];
  const float* bias = p.bias == nullptr ? nullptr : p.bias[query];
  if (bias == nullptr && !s.causal && s.window == 0) return;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = position_of(s, first + i), distance = at - position;
    if (bias != nullptr) scores[i] += bias[position * s.bias_key_stride];
    const bool near = s.window == 0 || (distance < s.window && -distance < s.window);
    if (!near || (s.causal && distance < 0)) scores[i] = kMinusInfinity;
  }
}

// context [head_dim] = context * rescale + weights V.
template <class Element>
HEADKIT_INLINE void weigh_rows(const AttendRowsParams<Element>& p, const float* weights,
                               float rescale, int64_t first, int64_t count, float* context) {
  constexpr int64_t kTogether = 4;
  int64_t d = 0;
  for (; d + kTogether * kLanes <= p.head_dim; d += kTogether * kLanes) {
    Vec sum[kTogether];
    for (int u = 0; u < kTogether; ++u) {
      sum[u] = mul(load(context + d + u * kLanes), broadcast(rescale));
    }
    for (int64_t i = 0; i < count; ++i) {
      const Element* row = p.v + key_row(p, first + i) * p.v_stride + d;
      const Vec w = broadcast(weights[i]);
#pragma GCC unroll 4
      for (int u = 0; u < kTogether; ++u) sum[u] = fma(w, load(row + u * kLanes), sum[u]);
    }
    for (int u = 0; u < kTogether; ++u) store(context + d + u * kLanes, sum[u]);
  }
  for (; d < p.head_dim; d += kLanes) {
    const int64_t used = p.head_dim - d < kLanes ? p.head_dim - d : kLanes;
    Vec sum = mul(load(context + d), broadcast(rescale));
    for (int64_t i = 0; i < count; ++i) {
      const Element* row = p.v + key_row(p, first + i) * p.v_stride + d;
      sum = fma(broadcast(weights[i]), used == kLanes ? load(row) : load_first(row, used), sum);
    }
    store(context + d, sum);
  }
}

template <class Element>
void attend_rows(const AttendRowsParams<Element>& p) {
  const int64_t stride = row_floats(p.head_dim);
  for (int64_t query = 0; query < p.num_queries; ++query) {
    p.largest[query] = kMinusInfinity;
    p.sum[query] = 0.0f;
    for (int64_t d = 0; d < stride; ++d) p.context[query * stride + d] = 0.0f;
  }
  float* scores = p.scratch;
  const int64_t end = p.first_key + p.num_keys;
  for (int64_t first = p.first_key; first < end; first += kRowBlock) {
    const int64_t count = end - first < kRowBlock ? end - first : kRowBlock;
    for (int64_t query = 0; query < p.num_queries; ++query) {
      score_rows(p, p.q + query * p.q_stride, first, count, scores);
      finish_row(p, query, first, count, scores);
      float largest = p.largest[query];
      for (int64_t i = 0; i < count; ++i) largest = scores[i] > largest ? scores[i] : largest;
      if (largest == kMinusInfinity) continue;  // it sees none of these, nor any before
      for (int64_t i = count; i < kRowBlock; ++i) scores[i] = kMinusInfinity;
      Vec sum = zero();
      for (int64_t i = 0; i < kRowBlock; i += kLanes) {
        const Vec e = exponential(sub(load(scores + i), broadcast(largest)));
        store(scores + i, e);
        sum = add(sum, e);
      }
      const float rescale = __builtin_expf(p.largest[query] - largest);
      p.largest[query] = largest;
      p.sum[query] = p.sum[query] * rescale + sum_lanes(sum);
      weigh_rows(p, scores, rescale, first, count, p.context + query * stride);
    }
  }
}

void transform_rows(const TransformRowsParams& p) {
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    float* row = p.rows + t * p.row_stride;
    if (p.norm_weight != nullptr) {
      float sum = 0.0f;
      for (int64_t d = 0; d < p.head_dim; ++d) sum += row[d] * row[d];
      const float mean = sum / static_cast<float>(p.head_dim);
      const float inverse = 1.0f / __builtin_sqrtf(mean + p.norm_eps);
      for (int64_t d = 0; d < p.head_dim; ++d) row[d] = row[d] * inverse * p.norm_weight[d];
    }
    const float* cosines = p.cosines == nullptr ? nullptr : p.cosines + t * p.angle_stride;
    const float* sines = p.sines == nullptr ? nullptr : p.sines + t * p.angle_stride;
    const int64_t half = cosines == nullptr ? 0 : p.rotary_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
      const float low = row[i], high = row[half + i];
      row[i] = low * cosines[i] - high * sines[i];
      row[half + i] = high * cosines[half + i] + low * sines[half + i];
    }
    for (int64_t d = 0; d < p.head_dim; ++d) row[d] *= p.scale;
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
