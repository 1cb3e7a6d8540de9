#pragma once

#include "kernels/cpu/attend.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Scratch of the backward of a pair.
struct AttendBackwardScratch {
  int64_t scores;          // [keys][P] of one panel of queries: exponentials
  int64_t d_scores;        // as scores
  int64_t context;         // [dh][P] of one panel of queries, gated
  int64_t d_context;       // as context
  int64_t q_rows;          // [P] rows of one panel of queries
  int64_t d_context_rows;  // as q_rows
  int64_t floats;

  AttendBackwardScratch(int64_t num_keys, int64_t head_dim) {
    int64_t at = 0;
    const auto place = [&at](int64_t count) {
      const int64_t offset = at;
      at += ceil_div(count, 16) * 16;
      return offset;
    };
    scores = place(num_keys * kPanel);
    d_scores = place(num_keys * kPanel);
    context = place(head_dim * kPanel);
    d_context = place(head_dim * kPanel);
    q_rows = place(kPanel * row_floats(head_dim));
    d_context_rows = place(kPanel * row_floats(head_dim));
    floats = at;
  }
};

int64_t attend_backward_scratch_floats(int64_t num_keys, int64_t head_dim) {
  return AttendBackwardScratch(num_keys, head_dim).floats;
}

// to [rows][to_stride] = finish(i, j, (add_to ? to : 0) + A B) for NV vectors of columns, with
// A(i, k) = a[k * a_stride + i * ARow].
template <int NV, int ARow = 1, class Finish>
HEADKIT_INLINE void multiply(int64_t rows, int64_t depth, const float* a, int64_t a_stride,
                             const float* b, int64_t b_stride, float* to, int64_t to_stride,
                             bool add_to, const Finish& finish) {
  for_chains(depth, [&](int64_t k, int64_t steps, bool first_chain, bool last_chain) {
    const bool adds = add_to || !first_chain;
    for_row_tiles<kTileRows[NV]>(rows, [&]<int MR>(int64_t i) {
      const float* from = a + k * a_stride + i * ARow;
      tile<MR, NV, ARow>(1, steps, from, a_stride, OneSegment{b + k * b_stride}, b_stride, from,
                         a_stride, [&](int r, int j, Vec c) {
                           float* at = to + (i + r) * to_stride + j * kLanes;
                           if (adds) c = add(load(at), c);
                           if (last_chain) c = finish(i + r, j, c);
                           store(at, c);
                         });
    });
  });
}

// to [rows] rows += A b, with A(i, k) = a[i * P + k] and b [depth] rows.
HEADKIT_INLINE void add_product(int64_t rows, int64_t depth, const float* a, const float* b,
                                int64_t head_dim, float* to) {
  const ColumnPanels panels(head_dim);
  const int64_t stride = row_floats(head_dim);
  for (int64_t panel = 0; panel < panels.panels; ++panel) {
    const int64_t column = panel * panels.width();
    for_vectors(panels.vectors_of(panel), [&]<int NV>() {
      multiply<NV, kPanel>(rows, depth, a, 1, b + column, stride, to + column, stride, true,
                           [](int64_t, int, Vec c) { return c; });
    });
  }
}

// [head_dim][P] -> `count` rows.
HEADKIT_INLINE void panel_to_rows(const float* panel, int64_t head_dim, int64_t count,
                                  float* rows) {
  const int64_t stride = row_floats(head_dim);
  pack_transposed([panel](int64_t d) { return panel + d * kPanel; }, head_dim, stride, count, rows,
                  stride);
}

// `count` rows -> [head_dim][P].
HEADKIT_INLINE void rows_to_panel(const float* rows, int64_t head_dim, int64_t count,
                                  float* panel) {
  const int64_t stride = row_floats(head_dim);
  pack_transposed([rows, stride](int64_t i) { return rows + i * stride; }, count,
                  vectors_of(count) * kLanes, head_dim, panel, kPanel);
}

HEADKIT_INLINE void clear(float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0.0f;
}

// d_scores = scores o (d_scores - their mean weighted by the scores). The mean is of the products
// as they were rounded, not rowsum(d_context o context): so the gradients of a query's scores
// cancel as they must, and with one key are exactly 0.
HEADKIT_INLINE void softmax_backward(const float* scores, int64_t count, int64_t vectors,
                                     const Vec* inverse, float* d_scores) {
  for (int64_t j = 0; j < vectors; ++j) {
    const float* e = scores + j * kLanes;
    float* d = d_scores + j * kLanes;
    Vec s[4];
    for (Vec& v : s) v = zero();
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) {
      for (int u = 0; u < 4; ++u) {
        s[u] = fma(load(e + (r + u) * kPanel), load(d + (r + u) * kPanel), s[u]);
      }
    }
    for (int u = 0; r < count; ++r, ++u)
      s[u] = fma(load(e + r * kPanel), load(d + r * kPanel), s[u]);
    const Vec mean = mul(add(add(s[0], s[1]), add(s[2], s[3])), inverse[j]);
    for (r = 0; r < count; ++r) {
      float* at = d + r * kPanel;
      store(at, mul(load(e + r * kPanel), sub(load(at), mean)));
    }
  }
}

// scores = exp(scores - largest)
HEADKIT_INLINE void exponentials(float* scores, int64_t count, int64_t vectors,
                                 const float* largest) {
  for (int64_t j = 0; j < vectors; ++j) {
    const Vec most = load(largest + j * kLanes);
    const Vec shift = if_equal(most, broadcast(kMinusInfinity), zero(), most);
    for (int64_t r = 0; r < count; ++r) {
      float* at = scores + r * kPanel + j * kLanes;
      store(at, exponential(sub(load(at), shift)));
    }
  }
}

// The gate's gradient and the gated context of one panel; also the gradient of the context, over
// the sum of the softmax, if asked for.
template <int NV>
void context_backward(const AttendBackwardParams& p, int64_t first_token, const Vec* inverse,
                      float* gate_gradient, float* gated, float* d_context) {
  const float* u = p.u + first_token * p.head_dim;
  const float* context = p.context + first_token * p.head_dim;
  const Vec gate = broadcast(p.gate);
  Vec product[NV], factor[NV];
  for (int j = 0; j < NV; ++j) {
    product[j] = zero();
    factor[j] = mul(gate, inverse[j]);
  }
  for (int64_t d = 0; d < p.head_dim; ++d) {
    for (int j = 0; j < NV; ++j) {
      const int64_t place = d * kPanel + j * kLanes;
      const Vec from_output = load(u + place), value = load(context + place);
      product[j] = fma(from_output, value, product[j]);
      store(gated + place, mul(gate, value));
      if (p.of_scores) store(d_context + place, mul(from_output, factor[j]));
    }
  }
  for (int j = 0; j < NV; ++j) {
    float* sum = gate_gradient + j * kLanes;
    store(sum, add(load(sum), product[j]));
  }
}

// One panel of queries. Softmax divides a query's exponentials by their sum: here the sum divides
// the gradient of the context instead, and the exponentials stay as they are.
template <int NV>
void backward_panel(const AttendBackwardParams& p, int64_t first_token, float* gate_gradient) {
  const AttendBackwardScratch at(p.num_keys, p.head_dim);
  const int64_t count = panel_size(first_token, p.num_tokens), head_dim = p.head_dim;
  const int64_t stride = row_floats(head_dim);
  const float* q = p.q + first_token * head_dim;
  const float* softmax = p.softmax + 2 * first_token;
  float* scores = p.scratch + at.scores;
  float* context = p.scratch + at.context;
  float* d_context = p.scratch + at.d_context;
  Vec inverse[NV];
  for (int j = 0; j < NV; ++j) {
    const Vec sum = load(softmax + kPanel + j * kLanes);
    inverse[j] = if_equal(sum, zero(), zero(), div(broadcast(1.0f), sum));
  }
  context_backward<NV>(p, first_token, inverse, gate_gradient, context, d_context);
  panel_to_rows(context, head_dim, count, p.context_rows + first_token * stride);
  if (!p.of_scores) return;

  float* dq = p.dq + first_token / kPanel * p.dq_stride;
  float* kept = p.d_scores == nullptr ? nullptr : p.d_scores + first_token * p.num_keys;
  const VisibleKeys keys = visible_keys(p.scores, p.num_keys, first_token, count);
  const int64_t visible = keys.end - keys.begin;
  if (kept != nullptr) {
    clear(kept, keys.begin * kPanel);
    clear(kept + keys.end * kPanel, (p.num_keys - keys.end) * kPanel);
  }
  if (visible == 0) return clear(dq, head_dim * kPanel);
  float* d_scores = kept == nullptr ? p.scratch + at.d_scores : kept + keys.begin * kPanel;

  score_keys<NV>(p.k, q, head_dim, keys.begin, visible, scores);
  if (p.scores.bias != nullptr) {
    add_bias<NV>(p.scores, first_token, count, keys.begin, visible, scores, d_scores, SameBias{});
  }
  hide_keys<NV>(p.scores, first_token, keys.begin, visible, scores);
  exponentials(scores, visible, NV, softmax);

  for (int64_t key = 0; key < visible; key += kPanel) {
    multiply<NV>(panel_size(key, visible), head_dim, p.v_panels + (keys.begin + key) * head_dim,
                 kPanel, d_context, kPanel, d_scores + key * kPanel, kPanel, false,
                 [](int64_t, int, Vec c) { return c; });
  }
  softmax_backward(scores, visible, NV, inverse, d_scores);
  const Vec scale = broadcast(p.scale);
  multiply<NV>(head_dim, visible, p.k_rows + keys.begin * stride, stride, d_scores, kPanel, dq,
               kPanel, false, [scale](int64_t, int, Vec c) { return mul(scale, c); });

  panel_to_rows(q, head_dim, count, p.scratch + at.q_rows);
  add_product(visible, count, d_scores, p.scratch + at.q_rows, head_dim,
              p.dk + keys.begin * stride);
  panel_to_rows(d_context, head_dim, count, p.scratch + at.d_context_rows);
  add_product(visible, count, scores, p.scratch + at.d_context_rows, head_dim,
              p.dv + keys.begin * stride);
}

void attend_backward(const AttendBackwardParams& p) {
  float gate_gradient[kPanel] = {};
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    for_vectors(vectors_of(panel_size(token, p.num_tokens)),
                [&]<int NV>() { backward_panel<NV>(p, token, gate_gradient); });
  }
  double sum = 0.0;
  for (const float lane : gate_gradient) sum += lane;
  *p.gate_gradient = static_cast<float>(sum);
}

void panels_to_rows(const TurnPanelsParams& p) {
  const int64_t stride = row_floats(p.head_dim);
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    panel_to_rows(p.panels + token / kPanel * p.panel_stride, p.head_dim,
                  panel_size(token, p.num_tokens), p.rows + token * stride);
  }
}

void rows_to_panels(const TurnPanelsParams& p) {
  const int64_t stride = row_floats(p.head_dim);
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    rows_to_panel(p.rows + token * stride, p.head_dim, panel_size(token, p.num_tokens),
                  p.panels + token / kPanel * p.panel_stride);
  }
}

void prepare_keys(const PrepareKeysParams& p) {
  const int64_t stride = row_floats(p.head_dim);
  for (int64_t key = 0; key < p.num_keys; key += kPanel) {
    const int64_t count = panel_size(key, p.num_keys);
    panel_to_rows(p.k + key * p.head_dim, p.head_dim, count, p.k_rows + key * stride);
    rows_to_panel(p.v + key * stride, p.head_dim, count, p.v_panels + key * p.head_dim);
  }
}

// Rows of keys -> rows of tokens, zero where a token is no key, and their panels.
void place_keys(const PlaceKeysParams& p) {
  const int64_t stride = row_floats(p.head_dim);
  int64_t key = 0;
  for (int64_t token = 0; token < p.num_tokens; ++token) {
    float* to = p.rows + token * stride;
    const bool is_key =
        key < p.num_keys && (p.key_position == nullptr ? key : p.key_position[key]) == token;
    if (!is_key) {
      clear(to, stride);
      continue;
    }
    for (int64_t d = 0; d < stride; d += kLanes) store(to + d, load(p.of_keys + key * stride + d));
    ++key;
  }
  rows_to_panels({.panels = p.panels,
                  .rows = p.rows,
                  .num_tokens = p.num_tokens,
                  .head_dim = p.head_dim,
                  .panel_stride = p.panel_stride});
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
